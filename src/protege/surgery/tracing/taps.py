"""Features on the way: what named modules give while the whole network runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Enough(Exception):
    """Every module has spoken: what the network would go on to do is not needed."""


@contextmanager
def first_outputs(modules: Mapping[str, nn.Module], stop: bool = False) -> Iterator[dict[str, Any]]:
    """What modules give in the forward pass inside the block, by name and in the order in which they are run.

    Of a module that is called again it is the first call's. A tensor is copied, as what follows may change it in
    place. ``stop`` ends the block as soon as each has been called.

    >>> with first_outputs({"first": network[0]}, stop=True) as outputs:
    ...     _ = network(x)
    >>> outputs["first"].shape
    torch.Size([2, 8, 6, 6])
    """
    outputs: dict[str, Any] = {}

    def listen(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if name not in outputs:
                outputs[name] = output.clone() if isinstance(output, Tensor) else output
            if stop and len(outputs) == len(modules):
                raise _Enough

        return hook

    handles = [module.register_forward_hook(listen(name)) for name, module in modules.items()]
    try:
        yield outputs
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def feature(output: Any) -> Any:
    """The feature in what a module gives: of a tuple or list the first tensor, as of a block that tells what it
    attends to beside its output.

    >>> feature((x, None)) is x
    True
    """
    several = isinstance(output, tuple | list) and len(output) > 0 and isinstance(output[0], Tensor)
    return output[0] if several else output


class Tapped(nn.Module):
    """A model that returns what some of its modules gave beside its outputs, with gradients.

    Called like ``model``; returns ``(features, outputs)``, the features being those modules' first outputs, each
    through its module of ``adapters`` (one for each name). ``names`` are those of ``model.network``'s modules.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], adapters: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self.names, self.adapters = model, tuple(names), nn.ModuleList(adapters)
        self.layout = getattr(model, "layout", "channels_last")

    def forward(self, raw: Tensor) -> tuple[list[Tensor], Any]:
        network: Any = self.model.network
        with first_outputs({name: network.get_submodule(name) for name in self.names}) as features:
            outputs = self.model(raw)
        return [adapt(feature(features[name])) for name, adapt in zip(self.names, self.adapters, strict=True)], outputs
