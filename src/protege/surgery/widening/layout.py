"""What a run of a network shows of its copies: how tensors and parameters are copied, and which calls and attributes
grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ..tracing.watch import Frame
from .attempts import parts_of
from .copies import CallEdit, Copies, Known, Layout, Placement, same, spread
from .scalars import key_of
from .search import Search


class Layouts:
    """The layouts of a network: what was learned in all runs, and what the last one shows (`begin`)."""

    def __init__(self, network: nn.Module, ratio: int, ends: Sequence[Tensor], costs: bool) -> None:
        self.network, self.ratio = network, ratio
        self.ends = ends  # what the network returns
        self.costs = costs  # whether the wide network may compute more than the student's calls
        named = [*network.named_parameters(), *network.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.tensors = dict(named)
        self.orders: dict[str, int] = {}  # order of a weight's copies; 0: not copied
        self.bare: dict[tuple[str, int], Copies] = {}
        self.kept: dict[str, str] = {}  # parameters that are not copied, and why
        self.undivided: set[str] = set()  # weights that are both embedding and layer
        self.demanded: set[tuple[str, int]] = set()
        self.search = Search()

    def begin(self, example: Tensor) -> None:
        """Forget what the last run showed but for what was learned."""
        self.changed = False
        self.learned: dict[str, int] = {}  # in this run, so not yet in effect
        self.stack: list[Frame] = []  # the modules that run
        self.known: dict[int, Known] = {id(example): Known(example, (None,) * example.dim(), None)}
        self.placements: dict[str, Placement] = {}
        self.edits: dict[str, dict[tuple[Callable, int], CallEdit]] = {}
        self.modules: dict[str, dict[str, Any]] = {}  # module → attributes that grow with its calls
        self.noise = torch.Generator().manual_seed(0)

    # ---- what is known ----------------------------------------------------------------------------------------------

    def look(self, tensor: Tensor) -> Known:
        """What is known of a tensor."""
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        name = self.names.get(id(tensor))
        if name is None:  # a constant, such as an index that a module or a cache keeps
            return Known(tensor, (None,) * tensor.dim(), ())
        layout = tuple(self.bare.get((name, dim)) for dim in range(tensor.dim()))
        if any(layout):
            self.place(name, layout, None)
        return Known(tensor, layout, (name,))

    def source(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, or the one of the same shape that it is computed from."""
        if id(tensor) in self.names:
            return self.names[id(tensor)]
        origins = self.look(tensor).origins or ()
        return next((name for name in origins if self.tensors[name].shape == tensor.shape), None)

    def fresh(self, maker: str, channels: int) -> Copies | None:
        """The copies of new channels."""
        inner = self.orders.get(maker, 1)
        return Copies(spread(channels, self.ratio, inner), maker) if inner else None

    # ---- what has to grow -------------------------------------------------------------------------------------------

    def place(self, name: str, layout: Layout, shared: int | None) -> bool:
        """Note how a parameter or buffer grows; False where another use of it wants otherwise."""
        there = self.placements.setdefault(name, Placement(layout, shared))
        return there.shared == shared and all(map(same, there.layout, layout))

    def demand(self, tensor: Tensor, layout: Layout, shared: int | None) -> bool:
        """Have a weight or bias grow; one that is computed (standardised, put together) by what it is made of. False
        where another use of it wants otherwise."""
        if id(tensor) in self.names:
            return self.place(self.names[id(tensor)], layout, shared)
        known = self.look(tensor)
        if known.origins and not all(map(same, known.layout, layout)):
            made_of = {name: self.tensors[name] for name in known.origins}
            for dim, (have, want) in enumerate(zip(known.layout, layout, strict=True)):
                if want is not None and not same(have, want):
                    self.learn({}, parts_of(want, made_of, dim if tensor.dim() > 1 else None))
                elif want is None and have is not None:
                    self.bare = {key: copies for key, copies in self.bare.items() if key[0] not in made_of}
                    self.changed = True
        return True

    def edit(self, func: Any, edit: CallEdit) -> None:
        """Have the call that was just made differ in the wide network."""
        path, func, count = key_of(self.stack, func)
        self.edits.setdefault(path, {})[func, count] = edit

    def grow(self, attributes: dict[str, Any]) -> None:
        """Have the module that runs other numbers as its attributes."""
        self.modules.setdefault(self.stack[-1].name, {}).update(attributes)

    # ---- what is learned for the next run ---------------------------------------------------------------------------

    def learn(self, inner: dict[str, int], bare: dict[tuple[str, int], Copies]) -> None:
        """Other orders of some weights' copies, and the copies of bare parameters."""
        for maker, value in inner.items():
            if self.orders.get(maker, 1) != value:
                self.orders[maker], self.learned[maker], self.changed = value, value, True
                self.demanded.add((maker, value))
                self.bare = {key: copies for key, copies in self.bare.items() if copies.maker != maker}
        for key, copies in bare.items():
            self.bare[key], self.changed = copies, True

    def askable(self, maker: str, inner: int) -> bool:
        """Whether a weight can be asked for this order of copies: newly, or again within this run."""
        if maker in self.learned:
            return self.learned[maker] == inner
        return (maker, inner) not in self.demanded and self.orders.get(maker, 1) != inner

    def keep(self, names: Iterable[str], why: str) -> None:
        """Let weights as they are that something is computed of which copies would change, such as their norm."""
        self.kept |= dict.fromkeys(names, why)
        self.bare = {key: copies for key, copies in self.bare.items() if key[0] not in self.kept}

    def failure(self, func: Any, why: str = "") -> UserError:
        """Why the network cannot be widened, if a call has no copies of its results."""
        frame = self.stack[-1]
        return UserError(
            f"{'module ' if frame.name else ''}{frame} calls {getattr(func, '__name__', func)} in a way that cannot be "
            f"widened{why}; expected a function that treats copies of a channel alike: replace it, or use another "
            "student."
        )
