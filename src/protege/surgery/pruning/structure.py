"""What was changed in a network's structure, as plain JSON: a list of edits that do it again to a fresh one.

A pruned network has its source's modules with other sizes. `record` finds the differences between the two, module
by module, and `rebuild` makes them in another fresh network, whose weights are then to be loaded: so a changed
network is stored by name, sizes and weights, and nothing is ever unpickled.

An edit names a module, its type, and sizes: {"module": "layer1.0.conv1", "type": "Conv2d", "in_channels": 16,
"out_channels": 11, "groups": 1, "bias": false}. Besides modules there are parameters of their own ("type":
"Parameter", "shape"), whole numbers that a module computes with ("type": "Attributes"), a convolution that became a
`Decoupled` pair, and a module that became an identity (a folded BatchNorm, say).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError, shown
from ..layers import let_learn, put
from .decouple import Decoupled
from .removal import KINDS, Kind, kind_of

Edit = dict[str, Any]

_PAIR = ("in_channels", "out_channels", "rank", "bias")
_TYPES = (*KINDS, "Parameter", "Attributes", "Identity", "Decoupled")


def record(original: nn.Module, changed: nn.Module) -> list[Edit]:
    """The edits that give a network built like `original` the structure of `changed`; [] where nothing differs.

    Neither network is touched. Raises `UserError` for a change that edits cannot tell, naming the module.

    >>> pruned = shrink(network, x, ratio={"2": 0.5}).network
    >>> [(edit["module"], edit["type"]) for edit in record(network, pruned)]
    [('2', 'Conv2d'), ('5', 'Linear')]
    """
    before, after = dict(original.named_modules()), dict(changed.named_modules())
    edits: list[Edit] = []
    replaced: list[str] = []
    for name, module in after.items():
        if _inside(name, replaced):
            continue
        if name not in before:
            raise UserError(
                f"the changed network has a module {name!r} that its source lacks; expected the same names."
            )
        edits += _edits(name, before[name], module)
        if isinstance(module, Decoupled) or type(before[name]) is not type(module):
            replaced.append(name)
    lost = [name for name in before if name not in after and not _inside(name, replaced)]
    if lost:
        raise UserError(f"the changed network lacks the module {lost[0]!r} of its source; expected the same names.")
    return edits


def _inside(name: str, owners: Sequence[str]) -> bool:
    return any(name.startswith(f"{owner}.") for owner in owners)


def _edits(name: str, before: nn.Module, after: nn.Module) -> list[Edit]:
    """What makes one module of the other, but for the modules inside it."""
    if isinstance(after, Decoupled) and isinstance(before, nn.Conv2d | Decoupled):
        now = {key: getattr(after, key) for key in _PAIR}
        same = isinstance(before, Decoupled) and all(getattr(before, key) == value for key, value in now.items())
        return [] if same else [{"module": name, "type": "Decoupled", **now}]
    if type(before) is not type(after):
        if type(after) is nn.Identity and name:
            return [{"module": name, "type": "Identity"}]
        raise UserError(
            f"the module {name!r} is a {type(after).__name__} where its source has a {type(before).__name__}; expected "
            "another size of the same kind: save such a network with a factory that builds it."
        )
    if kind := kind_of(after):
        now, old = _sizes_of(after, kind), _sizes_of(before, kind)
        return [] if now == old else [{"module": name, "type": kind.name, **now}]
    if isinstance(after, nn.modules.lazy.LazyModuleMixin):
        return []
    edits: list[Edit] = []
    tensors = {**before._parameters, **before._buffers}
    for key, value in [*after.named_parameters(recurse=False), *after.named_buffers(recurse=False)]:
        old_value = tensors.get(key)
        if old_value is None and key in after._buffers:
            continue
        if old_value is None:
            raise UserError(f"the module {name!r} has a parameter {key!r} that its source lacks; expected the same.")
        if old_value.shape != value.shape:
            edits.append({"module": f"{name}.{key}".lstrip("."), "type": "Parameter", "shape": list(value.shape)})
    numbers = _numbers(before)
    values = {key: value for key, value in _numbers(after).items() if numbers.get(key, value) != value}
    return [*edits, {"module": name, "type": "Attributes", "values": values}] if values else edits


def _sizes_of(module: nn.Module, kind: Kind) -> Edit:
    values = {key: getattr(module, key) for key in kind.sizes}
    sizes = {key: [int(item) for item in v] if isinstance(v, tuple | list) else v for key, v in values.items()}
    return sizes | ({"bias": module.bias is not None} if kind.biased else {})


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The whole numbers, and rows of such, that a module computes with."""
    values = {key: list(value) if type(value) is tuple else value for key, value in vars(module).items()}
    return {key: value for key, value in values.items() if _whole(value)}


def _whole(value: Any) -> bool:
    return type(value) is int or (type(value) is list and bool(value) and all(type(item) is int for item in value))


def rebuild(network: nn.Module, edits: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Make the edits in `network`, in place, and return it. Tensors of a changed shape are left uninitialised.

    Edits tell sizes, not differences: making them twice changes nothing more. All weights of an edited network learn.
    Raises `UserError` for an edit that does not fit the network.

    >>> pruned = shrink(network, x, ratio=0.5).network
    >>> again = rebuild(copy.deepcopy(network), record(network, pruned))
    >>> again.load_state_dict(pruned.state_dict())
    <All keys matched successfully>
    """
    for edit in edits:
        name, kind, changed = _checked(network, edit)
        if kind == "Parameter":
            put(network, name, _empty_like(changed, _sizes_in(edit, "shape")))
        elif kind == "Identity":
            network.set_submodule(name, nn.Identity())
        elif kind == "Decoupled":
            inputs, outputs, rank = (_sizes_in(edit, key)[0] for key in _PAIR[:3])
            like = changed.depthwise if isinstance(changed, Decoupled) else changed
            network.set_submodule(name, Decoupled.shaped(like, inputs, outputs, rank, edit.get("bias") is True))
        elif kind == "Attributes":
            values, known = edit.get("values"), _numbers(changed)
            if not isinstance(values, Mapping) or any(not _fits(v, known.get(k)) for k, v in values.items()):
                raise UserError(
                    f"the edit of {name!r} has values = {shown(values)}; expected whole numbers for some of "
                    f"{', '.join(known) or 'none'}."
                )
            for key, value in values.items():
                setattr(changed, key, tuple(value) if type(getattr(changed, key)) is tuple else value)
        else:
            _resize(changed, KINDS[kind], edit)
    if edits:
        let_learn(network)
    return network


def _fits(value: Any, known: Any) -> bool:
    """Whether an edit's numbers can stand where these are."""
    return _whole(value) and type(value) is type(known) and (type(value) is int or len(value) == len(known))


def _checked(network: nn.Module, edit: Mapping[str, Any]) -> tuple[str, str, Any]:
    """The name and the type in an edit, and the module or parameter of that name, known to be of that type."""
    if not isinstance(edit, Mapping) or not isinstance(edit.get("module"), str) or "type" not in edit:
        raise UserError(f'the edit {shown(edit)} of a structure is not usable; expected "module", "type" and sizes.')
    name, kind = edit["module"], edit["type"]
    if kind not in _TYPES:
        raise UserError(
            f"the structure has an edit of the unknown type {shown(kind)}; expected one of {', '.join(_TYPES)}."
        )
    known: dict[str, Any] = dict(
        [*network.named_parameters(), *network.named_buffers()] if kind == "Parameter" else network.named_modules()
    )
    if name not in known or (name == "" and kind != "Attributes"):
        raise UserError(
            f"the structure changes {shown(name)}, which {type(network).__name__} does not have; expected edits of "
            "this network: load it with the source that it was saved with."
        )
    fitting = KINDS[kind].module if kind in KINDS else (nn.Conv2d, Decoupled) if kind == "Decoupled" else object
    if not isinstance(known[name], fitting):
        raise UserError(
            f"the structure takes {name!r} for a {'Conv2d' if kind == 'Decoupled' else kind} but it is a "
            f"{type(known[name]).__name__}; expected edits of this network: load it with the source that it was saved "
            "with."
        )
    return name, kind, known[name]


def _sizes_in(edit: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = edit.get(key)
    sizes = value if isinstance(value, list | tuple) else [value]
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise UserError(f"the edit of {edit['module']!r} has {key} = {shown(value)}; expected whole numbers from 1.")
    return tuple(sizes)


def _resize(module: Any, kind: Kind, edit: Mapping[str, Any]) -> None:
    for key in kind.sizes:
        sizes = _sizes_in(edit, key)
        setattr(module, key, sizes if key == "normalized_shape" else sizes[0])
    groups = getattr(module, "groups", 1)
    if kind.name.startswith("Conv") and (module.in_channels % groups or module.out_channels % groups):
        raise UserError(f"the edit of {edit['module']!r} has channels that {groups} groups do not divide; correct it.")
    shapes = kind.shapes(module)
    if kind.biased:
        if edit.get("bias") is True and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(shapes["bias"]))
        elif edit.get("bias") is False:
            module.bias = None
    for key, shape in shapes.items():
        value = getattr(module, key, None)
        if value is not None and tuple(value.shape) != shape:
            setattr(module, key, _empty_like(value, shape))


def _empty_like(value: Tensor, shape: Sequence[int]) -> Tensor:
    # zeros, not `empty`: what is not loaded over must at least be finite
    fresh = torch.zeros(tuple(shape), dtype=value.dtype, device=value.device)
    return nn.Parameter(fresh, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else fresh
