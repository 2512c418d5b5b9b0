"""The zoo: name → factory, and building by name with arguments that are checked by name and value."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import UserError, nearest, shown, told
from . import language, mobilenet, resnet, small, unet, vgg, vit

ZOO: dict[str, Callable[..., nn.Module]] = {
    **resnet.FACTORIES,
    **vgg.FACTORIES,
    **mobilenet.FACTORIES,
    **vit.FACTORIES,
    **small.FACTORIES,
    **unet.FACTORIES,
    **language.FACTORIES,
}

LANGUAGE = frozenset(language.FACTORIES)  # they take tokens; the others take images
FIXED_SIZE = frozenset({*vit.FACTORIES, "mlp"})  # built for one image size; the others take any


def factory(name: str) -> Callable[..., nn.Module]:
    """The zoo's factory of that name; `UserError` with the nearest name where there is none."""
    if name not in ZOO:
        raise UserError(f"the zoo has no model {name!r}; {nearest(name, ZOO)}.")
    return ZOO[name]


def arguments_of(name: str) -> tuple[str, ...]:
    """The names of the arguments that the zoo's factory of that name takes."""
    return tuple(inspect.signature(factory(name)).parameters)


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A fresh network. `UserError` for an unknown name or argument and for values it cannot be built with."""
    build_network = factory(name)
    known = inspect.signature(build_network).parameters
    for key, value in arguments.items():
        if key not in known:
            raise UserError(f"zoo:{name} has no argument {shown(key)}; {nearest(key[:99], known)}.")
        counts, least = known[key].annotation in (int, int | None, "int", "int | None"), 0 if key == "depth" else 1
        if counts and value is not None and (type(value) is not int or value < least):
            raise UserError(
                f"zoo:{name} got {key}={shown(value)}, but a whole number from {least} is needed; correct it."
            )
    try:
        return build_network(**arguments)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        given = ", ".join(f"{key}={shown(value)}" for key, value in arguments.items())
        raise UserError(f"zoo:{name} cannot be built with {given}: {told(error)}; correct that argument.") from error
