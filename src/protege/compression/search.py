"""The frontier: smaller and smaller copies of a network, each solved for on a few images and judged on others."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Data, batches, choose, default_workers
from ..errors import UserError
from ..files import json_has, write_json
from ..methods import METHODS, Setup
from ..models import Model, count_macs, count_parameters, load_model
from ..signals import Views
from ..torch_utils import copy_network, device_of
from .budget import Budget, written
from .judge import Judge
from .ways import PIXELS, WAYS, Ways

SAMPLES = 500  # images that a candidate is solved for
LOOKED_AT = 200  # of them, on which the cost of channels is measured
CHUNK = 50
LARGE = 64 * 64  # pixels of an image, above which it has places enough to solve on without augmented views
RECORD = "candidate.json"
PLACES = "places.json"
COUNTED = {"size": "params", "latency": "macs"}  # what a file's figures follow, roughly
TRIES = 7  # networks that are made to find where a budget is met
MET, MET_IN_TIME = 0.97, 0.9  # so much of a budget is used: nearer is not worth another network, or not to be measured
CLOSER = 0.995

logger = logging.getLogger(__name__)
Measure = Callable[[Model], dict[str, float]]


@dataclass
class Candidate:
    """A smaller network that was solved for: its folder, what it costs, and how it is judged (`Judge`) before it is
    solved for and after."""

    name: str
    how: str
    folder: Path
    figures: dict[str, float]
    before: dict[str, float]
    metrics: dict[str, float]
    layers: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def told(self, out: Path) -> dict[str, Any]:
        """The candidate as a record keeps it; its folder from ``out``."""
        return {**vars(self), "folder": str(self.folder.relative_to(out))}


class Unmet(UserError):
    """A budget that the smallest network does not meet, and the ``name`` of the limit."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class Search:
    """Makes candidates from the ``teacher`` with the training images of ``data``, and keeps them in a folder ``out``:
    what lies there is not made again. Networks are shrunk in one of `WAYS` to a share of the teacher's multiply-adds
    (of its parameters where the ``budget`` limits only these)."""

    def __init__(
        self,
        teacher: Model,
        data: Data,
        raw: Tensor,
        judge: Judge,
        budget: Budget,
        measure: Measure,
        out: Path,
        seed: int,
        reporter: Callable[[str], Callable[[int, int], None]],
    ) -> None:
        self.teacher, self.data, self.raw, self.judge, self.budget = teacher, data, raw, judge, budget
        self.measure, self.out, self.reporter = measure, out, reporter
        count = min(SAMPLES, len(data.train))
        self.positions = choose(None, samples=count, seed=seed, count=len(data.train))
        self.whole = self.figures(teacher)
        self.refused: dict[str, str] = {}  # ways that give no candidate, and why
        self.late: Callable[[], bool] = lambda: False  # whether the time for the search is over
        limited = {COUNTED.get(name, name) for name in budget.limits}
        self.ways = Ways(teacher, data, raw, "params" if limited == {"params"} else "macs", self._looked_at)

    def _looked_at(self) -> Iterator[Tensor]:
        some = self.positions[torch.linspace(0, len(self.positions) - 1, min(LOOKED_AT, len(self.positions))).long()]
        parts, report = list(some.split(CHUNK)), self.reporter("what each channel costs")
        for done, batch in enumerate(batches(self.data.train, parts, CLEAN, Augment(), device=device_of(self.teacher))):
            yield self.teacher.prepared(batch.inputs)
            report(done + 1, len(parts))

    def place(self, how: str) -> float:
        """The largest share at which the budget is met, by making networks and measuring them. Raises `Unmet` where
        this way does not go so far."""
        places = self._places()
        if how not in places:
            places[how] = self._place(how)
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / PLACES, places)
        return places[how]

    def _places(self) -> dict[str, float]:
        known = self.out / PLACES
        return json.loads(known.read_text(encoding="utf-8")) if json_has(known) else {}

    def _place(self, how: str) -> float:
        shares = self.budget.shares(self.whole)
        low, high = 0.0, 1.0  # the budget is met at low, if anywhere, and not at high
        share, best, reason = min(shares.values()) * (CLOSER if self.budget.measured else 1.0), 0.0, ""
        figures: dict[str, float] = {}
        for _ in range(TRIES):
            try:
                figures = self.figures(self.ways.model(how, share)[0])
            except UserError as error:  # this way does not go so far; perhaps it need not
                reason = reason or str(error)
                if not self.budget.measured:
                    break
                low, share = share, (share + high) / 2
                continue
            over = self.budget.over(figures, self.whole)
            if over <= 1:
                low = best = share
                if self.late() or over > (MET if self.budget.latency is None else MET_IN_TIME):
                    break
            else:
                high = share
                if self.ways.at_end(how, share):
                    break
            share = share / over * CLOSER
            if not low < share < high:
                share = (low + high) / 2
        if best:
            return best
        raise Unmet(reason) if reason else self._unmet(figures)

    def _unmet(self, figures: Mapping[str, float]) -> Unmet:
        limits = self.budget.limits
        name, limit = max(limits.items(), key=lambda item: item[1].over(figures[item[0]], self.whole[item[0]]))
        nearest = figures[name] / self.whole[name]
        path = self.ways.path()
        assert path is not None
        whole = "; ".join(path.reasons()[:3])
        asked = f"{limit.share:.1%} of the teacher's" if limit.value is None else written(name, limit.value)
        return Unmet(
            f"{name} = {asked} cannot be met; expected at least {nearest:.1%} of the teacher's "
            f"({written(name, figures[name])}), which the smallest network takes"
            f"{' (left whole: ' + whole + ')' if whole else ''}: give {name} that is larger.",
            name,
        )

    # ---- candidates --------------------------------------------------------------------------------------------------

    def candidate(self, how: str, share: float) -> Candidate | None:
        """A network of the share, as a candidate; None where this way does not go there."""
        name, folder = self._named(how, share)
        if self.has(how, share):
            known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return Candidate(**{**known, "folder": folder})
        began = time.monotonic()
        try:
            model, left_out = self.ways.model(how, share)
            before = after = self.judge(model)
            layers = []
            if how != PIXELS:  # which loses nothing that could be solved for
                layers = self._solved(model, self.reporter(f"{name}, layers solved for")).get("blocks", [])
                after = self.judge(model)
        except UserError as error:
            self.refused.setdefault(how, str(error))
            logger.info("%s is left out: %s", WAYS[how], error)
            return None
        made = Candidate(name, how, folder, self.figures(model), before, after, layers, left_out)
        made.seconds = round(time.monotonic() - began, 2)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder, overwrite=True)
        write_json(folder / RECORD, {**made.told(self.out), "folder": name})
        return made

    def _named(self, how: str, share: float) -> tuple[str, Path]:
        name = f"{share:.3f}-{how}"
        return name, self.out / name

    def has(self, how: str, share: float | None = None) -> bool:
        """Whether the candidate has been made, or the one where the budget is met."""
        if share is None:
            share = self._places().get(how)
        return share is not None and json_has(self._named(how, share)[1] / RECORD, "name", "metrics")

    def load(self, candidate: Candidate) -> Model:
        """A candidate's model, from its folder."""
        return load_again(candidate.folder, self.teacher)

    def figures(self, model: Model) -> dict[str, float]:
        """What a model costs: `sizes`, and what must be measured for the budget."""
        return self.sizes(model) | self.measure(model)

    def sizes(self, model: Model) -> dict[str, float]:
        """Multiply-adds and parameters."""
        return {"macs": float(count_macs(model, self.raw)), "params": float(count_parameters(model.network))}

    def _solved(self, model: Model, report: Callable[[int, int], None]) -> dict[str, Any]:
        """Align it with the teacher (`fskd`), whole kernels, on the images of the search."""
        method, train = METHODS["fskd"], self.data.train
        given = {"solve": "kernel"} | ({"augmented": 0} if math.prod(train.shape[1:]) > LARGE else {})
        views = Views(train, self.positions, self.data.augment, 0, device_of(model), default_workers())
        setup = Setup(model, self.teacher, self.judge.task, method.settings.model_validate(given), views)
        (phase,) = method(setup)
        return phase.solve(report)  # type: ignore[union-attr]


def load_again(folder: Path, teacher: Model) -> Model:
    """A model that was made of the teacher's, from its folder."""
    named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    network = None if named else copy_network(teacher.network)  # of the user's own
    return load_model(folder, network=network, trust=True)
