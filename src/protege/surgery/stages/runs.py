"""The resolutions of a network in forward order, and where a stage may end at each.

A stage may end where nothing else that was learned is alive but the output of a module and, in a U-Net, skip
connections on their way to the decoder.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from ...errors import UserError
from ..nests import tensors_in
from ..tracing.graph import Trace, Untraceable, trace
from .places import SAME, Cut, cut_at, places_of, readings

HEAVY = 0.9  # of the parameters: more in one stage, and the network is hardly divided
NO_ENDS = ("torch.nn.modules.pooling", "torch.nn.modules.dropout")  # they belong to what follows
VECTOR = "vector"


@dataclass(frozen=True)
class Run:
    """The cuts at one resolution (or of vectors): the `last`, and `parts` into which it can be divided further where
    its `share` of the network's parameters is too large for one stage."""

    key: str
    last: Cut
    parts: tuple[Cut, ...]
    share: float

    @property
    def heavy(self) -> bool:
        return self.share > HEAVY


def runs_of(network: nn.Module, example: Tensor) -> list[Run]:
    """The runs of a network in forward order; of one that keeps one resolution but for its stem, only that.

    Modules whose own code cannot be traced are taken whole. Raises `UserError` where nothing can be seen inside.
    """
    openable = {
        m for m in network.modules() if not type(m).__module__.startswith("torch.nn") or isinstance(m, nn.Sequential)
    }
    try:
        traced = trace(network, example, openable & {network}, welcome=openable)
    except Untraceable as error:
        raise UserError(
            f"the code of {type(network).__name__} cannot be traced to find its stages ({error.reason}); name "
            'them as stages = "student_module=teacher_module,…" or take a method without stages.'
        ) from error
    survey = _Survey(network, traced, example)
    runs = survey.runs()
    large = max(runs, key=lambda run: run.share, default=None)
    if large is None or large.key == VECTOR:
        return runs
    others = [run for run in runs if run is not large and run.key != VECTOR]
    if len(large.parts) > max(1, len(others)) and (not others or large.heavy or large.last.level is None):
        return [replace(large, share=1.0)]
    return runs


class _Survey:
    """A traced network's nodes: in which order they run, which modules' first outputs they are, what those are, and
    what is learned in them."""

    def __init__(self, network: nn.Module, traced: Trace, example: Tensor) -> None:
        self.network, self.traced, self.nodes = network, traced, traced.nodes
        self.order = {node: number for number, node in enumerate(self.nodes)}
        self.named: dict[fx.Node, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, module in network.named_modules():
            node = traced.first.get(module)
            if name and node is not None and isinstance(traced.values[node], Tensor):
                self.named[node].append((name, module))
        outputs = {same[0][0]: traced.values[node] for node, same in self.named.items()}
        places = places_of(network, outputs, example)
        self.places = {node: places[same[0][0]] for node, same in self.named.items() if same[0][0] in places}
        self.levels: dict[fx.Node, float | None] = {}  # how often the input was halved up to there, or else up to use
        for node in reversed(self.nodes):
            users = sorted((n for n in node.users if tensors_in(traced.values[n])), key=self.order.__getitem__)[:1]
            known = [self.places[node]] if node in self.places else []
            known = known or ([] if users else readings(traced.values[node], example)[:1])
            level = next((place.halvings for place in known), None)
            self.levels[node] = self.levels[users[0]] if level is None and users else level
        weights = [self._weights(node) for node in self.nodes]
        self.learned = [number for number, values in enumerate(weights) if values]
        self.since = {value: number for number, values in reversed([*enumerate(weights)]) for value in values}
        self.total = sum(value.numel() for value in self.since)
        self.live: set[fx.Node] = set()  # what depends on what is inside the input and was learned
        for node, values in zip(self.nodes, weights, strict=True):
            if node in traced.content and (values or not self.live.isdisjoint(node.all_input_nodes)):
                self.live.add(node)
        self.uses: dict[fx.Node, list[fx.Node]] = {
            source: [user for user in source.users if tensors_in(traced.values[user])]
            for source in self.nodes
            if source in self.live and tensors_in(traced.values[source])
        }
        self.resolutions = [
            (self.order[node], place.halvings)
            for node in self.nodes
            if (place := self.places.get(node)) is not None and place.halvings is not None
        ]
        self.ended = {
            name: None if place.halvings is None else round(place.halvings)
            for node, place in self.places.items()
            for name, module in self.named[node]
            if not isinstance(module, nn.Sequential)
        }

    def _weights(self, node: fx.Node) -> list[nn.Parameter]:
        if node.op == "call_module":
            return list(self.traced.entry.get_submodule(str(node.target)).parameters())
        values = [self.traced.values[source] for source in node.all_input_nodes if source.op == "get_attr"]
        return [value for value in values if isinstance(value, nn.Parameter)]

    def runs(self) -> list[Run]:
        """All there are, in forward order."""
        groups: list[list[fx.Node]] = []
        last: fx.Node | None = None
        for node in self._ends():
            if last is not None and self._alike(last, node):
                groups[-1].append(node)
            elif self._mass(last, node):
                groups.append([node])
            else:
                continue
            last = node
        starts = [None, *(group[-1] for group in groups)]
        runs = []
        for start, group in zip(starts, groups, strict=False):
            last_cut = self._last(group)
            parts = self._blocks(start, group) or self._components(start, group) or [last_cut]
            share = self._mass(start, group[-1]) / max(1, self.total)
            runs.append(Run(self._key(group[0]), last_cut, tuple(parts), share))
        return self._without_head(runs)

    def _ends(self) -> list[fx.Node]:
        """Where a stage may end, in order: between what is learned, and where nothing else is alive but long skips."""
        first, last = min(self.since.values(), default=0), max(self.since.values(), default=-1)
        return [
            node
            for node in self.nodes
            if node in self.places
            and first <= self.order[node] < last
            and not any(type(module).__module__ in NO_ENDS for _, module in self.named[node])
            and self._clear(node)
        ]

    def _clear(self, node: fx.Node) -> bool:
        """Whether all that was learned goes through a node that is used later, but for long skips, one at a resolution:
        what is used next at a finer resolution, or at the same after a detour through coarser ones."""
        here, level = self.order[node], self.places[node].halvings
        later = {
            source: ahead
            for source, users in self.uses.items()
            if self.order[source] < here and (ahead := [user for user in users if self.order[user] > here])
        }
        if level is None or not later:
            return not later
        coarser = (place for place, other in self.resolutions if place >= here and other > level + SAME)
        detour = next(coarser, len(self.nodes))
        kept = [round(self.levels[source] or 0) for source in later]
        ends = [(self.order[user], self.levels[user]) for ahead in later.values() for user in ahead]
        long = all(used is not None and used < level + (SAME if end > detour else -SAME) for end, used in ends)
        return long and len(set(kept)) == len(kept)

    def _key(self, node: fx.Node) -> str:
        place = self.places[node]
        if not place.grid:
            return VECTOR
        level = "" if place.halvings is None else f" {round(place.halvings)}"
        return ("map" if len(place.grid) == 2 else "tokens") + level

    def _alike(self, node: fx.Node, other: fx.Node) -> bool:
        a, b = self.places[node], self.places[other]
        if len(a.grid) != len(b.grid) or (a.halvings is None) != (b.halvings is None):
            return False
        return a.halvings is None or b.halvings is None or abs(a.halvings - b.halvings) < SAME

    def _mass(self, start: fx.Node | None, end: fx.Node) -> int:
        """How many parameters are used first behind one node and up to another."""
        first, last = self.order[start] if start else -1, self.order[end]
        return sum(value.numel() for value, number in self.since.items() if first < number <= last)

    def _cut(self, node: fx.Node, name: str = "") -> Cut:
        """A cut, by the shortest name unless by a given one."""
        name = name or min((name for name, _ in self.named[node]), key=lambda name: name.count("."))
        return cut_at(name, self.traced.values[node], self.places[node])

    def _last(self, group: Sequence[fx.Node]) -> Cut:
        """The last cut of a resolution, but not within a block that goes on to the next one, if that can be."""

        def depth(node: fx.Node) -> int:
            cut = self._cut(node)
            around = [cut.name[:at] for at, letter in enumerate(cut.name) if letter == "."]
            return sum(self.ended.get(name, cut.level) != cut.level for name in around)

        least = min(map(depth, group))
        return self._cut([node for node in group if depth(node) == least][-1])

    def _blocks(self, start: fx.Node | None, group: Sequence[fx.Node]) -> list[Cut]:
        """The ends of the modules of one kind, with what follows without weights, that hold most of a resolution;
        none unless there are several, which hold half of it."""
        kinds: dict[tuple[type, tuple[int, ...]], dict[fx.Node, tuple[str, nn.Module]]] = defaultdict(dict)
        for node in group:
            for name, module in self.named[node]:
                kinds[type(module), tuple(self.traced.values[node].shape)][node] = (name, module)

        def mass(blocks: dict[fx.Node, tuple[str, nn.Module]]) -> int:
            return sum(value.numel() for value in {v for _, module in blocks.values() for v in module.parameters()})

        best = max(kinds.values(), key=lambda blocks: (len(blocks) > 1, mass(blocks), len(blocks)), default={})
        if len(best) < 2 or 2 * mass(best) < self._mass(start, group[-1]):
            return []
        cuts = []
        for node, (name, _) in best.items():
            later = bisect_right(self.learned, self.order[node])
            limit = self.learned[later] if later < len(self.learned) else len(self.nodes)
            shape = self.traced.values[node].shape
            after = [
                n for n in group if self.order[node] < self.order[n] < limit and self.traced.values[n].shape == shape
            ]
            cuts.append(self._cut(after[-1]) if after else self._cut(node, name))
        return cuts

    def _components(self, start: fx.Node | None, group: Sequence[fx.Node]) -> list[Cut]:
        """The last cuts in the components, such as a backbone and a decoder, that have a resolution in common."""
        paths = [self._cut(node).name.split(".") for node in group]
        shared = 0
        while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
            shared += 1
        ends = {path[shared]: node for path, node in zip(paths, group, strict=True)}
        cuts = []
        for node in sorted(ends.values(), key=self.order.__getitem__):
            if self._mass(start, node):
                cuts.append(self._cut(node))
                start = node
        return cuts

    def _without_head(self, runs: list[Run]) -> list[Run]:
        """Without the last resolution where it ends within a block that gives the network's outputs: that is the head
        as a whole."""
        maps = [run for run in runs if run.key != VECTOR]
        for name, module in self.network.named_modules():
            inside = [run for run in maps if run.last.name.startswith(f"{name}.")]
            if (
                name
                and not isinstance(module, nn.Sequential)
                and self.traced.first.get(module) is self.nodes[-1].args[0]
                and inside
                and inside == maps[1:][-1:]
            ):
                return [run for run in runs if run not in inside]
        return runs
