"""The frontier: smaller and smaller copies of a network, each solved for on a few images and judged on others."""

from __future__ import annotations

import json
import logging
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
from ..run.shrinking import shrunk_model
from ..signals import Views
from ..surgery import Shrunk, decouple
from ..surgery import shrink as prune
from ..surgery.pruning import Path as Way
from ..surgery.pruning import path_of
from ..torch_utils import copy_network, device_of
from .budget import Budget
from .judge import Judge

SAMPLES = 500  # images that a candidate is solved for
LOOKED_AT = 200  # of them, on which the cost of channels is measured
CHUNK = 50
RECORD = "candidate.json"
MET = 0.97  # so much of a budget is used: nearer is not worth another file
CLOSER = 0.995
OTHERS = ("l1", "slim", "decouple")  # ways of shrinking that are tried beside the path where the budget is met

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


class Search:
    """Makes candidates from the ``teacher`` with the training images of ``data``, and keeps them in a folder ``out``:
    what lies there is not made again."""

    def __init__(
        self, teacher: Model, data: Data, raw: Tensor, judge: Judge, measure: Measure, out: Path, seed: int
    ) -> None:
        self.teacher, self.data, self.raw, self.judge, self.measure, self.out = teacher, data, raw, judge, measure, out
        self.prepared = teacher.prepared(raw)
        count = min(SAMPLES, len(data.train))
        self.positions = choose(None, samples=count, seed=seed, count=len(data.train))
        self.whole = self.sizes(teacher)
        self._way: Way | None = None

    @property
    def way(self) -> Way:
        """The path of removals, measured when it is first needed."""
        if self._way is None:
            self._way = path_of(self.teacher.network, self.prepared, self._looked_at())
        return self._way

    def _looked_at(self) -> Iterator[Tensor]:
        some = self.positions[torch.linspace(0, len(self.positions) - 1, min(LOOKED_AT, len(self.positions))).long()]
        for batch in batches(
            self.data.train, list(some.split(CHUNK)), CLEAN, Augment(), device=device_of(self.teacher)
        ):
            yield self.teacher.prepared(batch.inputs)

    # ---- where the budget is met -----------------------------------------------------------------------------------

    def place(self, budget: Budget, teacher: Mapping[str, float]) -> int:
        """The first place on the path where the budget is met, by making networks and measuring them. Raises
        `UserError` where the smallest does not meet it."""
        way, shares = self.way, budget.shares(teacher)
        low, high = 0, len(way.places)  # the budget is not met at low, perhaps at high
        over: dict[int, float] = {}
        near = {"size": "params", "latency": "macs"}  # what a file's figures follow, roughly
        guess = max(way.first(**{near.get(name, name): share}) for name, share in shares.items())
        while high - low > 1 or high not in over:
            guess = min(max(guess, low + 1), high)
            if guess in over:
                guess = (low + high) // 2
            over[guess] = budget.over(self.figures(self._model(way.cut(guess))), teacher)
            if over[guess] <= 1:
                high = guess
                if over[guess] > MET:
                    break
            else:
                low = guess
            if low == len(way.places):
                raise UserError(self._unmet(budget, self.figures(self._model(way.cut(low))), teacher))
            guess = way.first(macs=way.places[guess - 1].macs / over[guess] * CLOSER)
        return high

    def _unmet(self, budget: Budget, figures: Mapping[str, float], teacher: Mapping[str, float]) -> str:
        name, limit = max(budget.limits.items(), key=lambda item: item[1].over(figures[item[0]], teacher[item[0]]))
        nearest = figures[name] / teacher[name]
        whole = "; ".join(self.way.reasons()[:3])
        return (
            f"{name} = {limit} cannot be met; expected at least {figures[name]:.4g}, {nearest:.1%} of the teacher's"
            f"{' (left whole: ' + whole + ')' if whole else ''}: give {name} that is larger."
        )

    # ---- candidates --------------------------------------------------------------------------------------------------

    def at(self, count: int) -> Candidate:
        """The network at a place of the path, as a candidate."""
        share = self.way.places[count - 1].macs
        return self._candidate(f"{share:.3f}", "path", lambda: self.way.cut(count))

    def by(self, how: str, macs: float) -> Candidate | None:
        """A candidate with the same share of multiply-adds, shrunk in another way; None where that cannot be."""

        def made() -> Shrunk:
            if how == "decouple":
                return decouple(self.teacher.network, None, macs=macs, example=self.prepared)
            return prune(self.teacher.network, self.prepared, how, macs=macs)

        try:
            return self._candidate(f"{macs:.3f}-{how}", how, made)
        except UserError as error:
            logger.info("%s is left out: %s", how, error)
            return None

    def _candidate(self, name: str, how: str, make: Callable[[], Shrunk]) -> Candidate:
        folder = self.out / name
        if json_has(folder / RECORD, "name", "metrics"):
            known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return Candidate(**{**known, "folder": folder})
        began = time.monotonic()
        result = make()
        model = self._model(result)
        before = self.judge(model)
        solved = self._solved(model)
        figures = self.figures(model)
        left_out = [str(part) for part in result.left_out]
        layers = solved.get("blocks", [])
        made = Candidate(name, how, folder, figures, before, self.judge(model), layers, left_out)
        made.seconds = round(time.monotonic() - began, 2)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder, overwrite=True)
        write_json(folder / RECORD, {**made.told(self.out), "folder": name})
        return made

    def load(self, candidate: Candidate) -> Model:
        """A candidate's model, from its folder."""
        named = json.loads((candidate.folder / "config.json").read_text(encoding="utf-8"))["model"]
        network = None if named else copy_network(self.teacher.network)  # of the user's own
        return load_model(candidate.folder, network=network, trust=True)

    def figures(self, model: Model) -> dict[str, float]:
        """What a model costs: `sizes`, and what must be measured for the budget."""
        return self.sizes(model) | self.measure(model)

    def sizes(self, model: Model) -> dict[str, float]:
        """Multiply-adds and parameters."""
        return {"macs": float(count_macs(model, self.raw)), "params": float(count_parameters(model.network))}

    def _model(self, result: Shrunk) -> Model:
        return shrunk_model(self.teacher, result, self.raw, self.data)

    def _solved(self, model: Model) -> dict[str, Any]:
        """Align it with the teacher (`fskd`), whole kernels, on the images of the search."""
        method = METHODS["fskd"]
        settings = method.settings.model_validate({"solve": "kernel"})
        train = self.data.train
        views = Views(train, self.positions, self.data.augment, 0, device_of(model), default_workers())
        setup = Setup(model, self.teacher, self.judge.task, settings, views)
        (phase,) = method(setup)
        return phase.solve(lambda done, total: None)  # type: ignore[union-attr]
