"""A teacher's outputs for anybody's training loop: computed once, remembered in the files of `protege.distill`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data import Augment, Batch, Data, check_augment, default_workers, load_data
from ..data.given import has_splits
from ..data.progress import progress
from ..data.spec import GIB
from ..errors import UserError, shown
from ..files import usable
from ..models import framed_for, held_out_by, known_ranges, load_model
from ..models.classes import in_order_of
from ..models.opening import about
from ..models.placing import place
from ..models.precision import on_cpu, resolve_precision
from ..settings import public
from ..tasks import TASKS
from ..torch_utils import seeded
from .exchange import process
from .signals import Signals
from .source import Logits, Signal, Source
from .views import DEFAULT_VIEWS, Views, settled, shuffled

SPOKEN = {  # arguments of a run, as they are called here
    "go on with resume=True, or start anew with a lower cache_budget=…": "go on, or give a lower budget=…",
    "cache=…": "folder=…",
}


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says about a batch, in float32; ``fields`` has all of it by name.

    Shapes are those of its outputs, such as ``[B, K]``; of the k largest probabilities (`TopK`) k is in place of K.
    """

    fields: Mapping[str, Tensor]
    class_dim: int = 1

    @property
    def logits(self) -> Tensor:
        """The outputs as they are. Raises `UserError` where only some of them were asked for."""
        if "logits" not in self.fields:
            raise UserError(
                f"the teacher was asked for {', '.join(self.fields)} and not for its logits; expected Logits() among "
                "them: add it to signals=…."
            )
        return self.fields["logits"]

    @cached_property
    def probs(self) -> Tensor:
        """The probabilities of all classes, or of those that `indices` names."""
        return self.fields["probs"] if "probs" in self.fields else self.logits.softmax(self.class_dim)

    @property
    def indices(self) -> Tensor | None:
        """int64, the classes that `probs` belong to, the likeliest first; None where they are of all classes."""
        return self.fields.get("classes")

    @cached_property
    def rest(self) -> Tensor:
        """The probability of all classes together that `probs` leaves out: its shape without the dimension of classes.

        With it, ``-(probs * log_q.gather(1, indices)).sum(1)`` and what the rest adds make a whole cross-entropy;
        `protege.losses.topk` spreads it evenly.
        """
        total = self.probs.sum(self.class_dim)
        return torch.zeros_like(total) if self.indices is None else (1 - total).clamp(min=0)

    @property
    def features(self) -> dict[str, Tensor]:
        """The outputs of modules, by their names."""
        names = [name for name in self.fields if name.startswith("feature:")]
        return {name.removeprefix("feature:"): self.fields[name] for name in names}


class TaughtBatch(dict[str, Any]):
    """Samples with what a teacher says about just these pixels: a dict whose keys are attributes as well.

    ``inputs``: raw uint8 [B, C, H, W], or int64 tokens [B, L]; a `protege.Model` takes them as they are. ``labels``:
    int64 [B], [B, H, W] or [B, L], -100 where there is none. ``index``: int64 [B], the samples' places in the set, on
    the CPU. ``view``: which augmentation they are. ``teacher``: `TeacherOutputs`.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    view: int
    teacher: TeacherOutputs

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"a batch has no {name!r}; it has {', '.join(self)}.")


class TeacherCache:
    """A frozen teacher's outputs on a training set, computed once and remembered on disk.

        >>> import torch, protege
        >>> from protege.losses import kd_loss
        >>> from protege.signals import TeacherCache
        >>> data = protege.load_data("digits")
        >>> teacher, student = (protege.load_model("zoo:mlp", data=data) for _ in range(2))
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> cache = TeacherCache(teacher, data, views=2)
        >>> for epoch in range(3):  # the third meets the first one's view again, for which nothing is computed
        ...     for batch in cache.loader(128):
        ...         loss = kd_loss(student(batch.inputs), batch.teacher.logits, temperature=4.0)
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()

    ``teacher`` is a `protege.Model`, any ``nn.Module`` or a spec, as in `protege.distill`. ``data`` is a map-style
    Dataset of (image, label), of which all samples are learned from; or a data spec, `Data` or a dict of splits, of
    which the training split is. ``signals`` are what is remembered: `Logits`, `TopK`, `Feature`.

    Remembering is exact: a sample has ``views`` augmentations, each a function of its place in the set and the view's
    number alone, and what is remembered of one is what the teacher says about its very pixels, in half precision.
    Epochs go through the views in turn; ``"all"`` makes a fresh view each epoch, of which nothing is remembered.
    ``augment`` is what views are made by ("shift=4,flip", "none", or a callable); None: what suits the data.

    The files lie in ``folder``, or else with all caches, and are those of `protege.distill`: a run over the same
    teacher, data and views finds what it needs, and the other way round. What has no room in ``budget`` bytes is
    computed each time; the numbers are the same. Nothing is written before the first batch or `fill`.

    ``seed`` decides the order of samples (and, of ``"all"``, the views). ``precision`` is "bf16", "fp32" or "auto".
    ``device``, ``workers``, ``image_size``, ``skip_bad`` and ``trust`` are those of a run. Raises `UserError` for what
    cannot be used.
    """

    @public
    def __init__(
        self,
        teacher: str | nn.Module,
        data: Any,
        *,
        views: int | Literal["all"] = DEFAULT_VIEWS,
        signals: Sequence[Signal] = (Logits(),),
        augment: Any = None,
        seed: int = 0,
        folder: str | Path | None = None,
        budget: int = 4 * GIB,
        precision: str = "auto",
        device: Any = None,
        workers: int | None = None,
        image_size: int | None = None,
        skip_bad: int = 0,
        trust: bool = False,
    ) -> None:
        if not (views == "all" or (isinstance(views, int) and views >= 1)):
            raise UserError(f"views = {shown(views)} is no number of views; expected one from 1, or 'all'.")
        if not signals:
            raise UserError("signals is empty; expected what to ask the teacher for, such as [Logits()].")
        if precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"precision = {shown(precision)} is not known; expected auto, bf16 or fp32.")
        device = torch.device(device or ("cpu" if on_cpu() else torch.accelerator.current_accelerator() or "cpu"))
        self.data, self.teacher = _opened(teacher, data, device, seed, image_size, skip_bad, trust)
        self.task, self.seed, self.epoch = TASKS[self.data.task].taught_by(self.teacher), seed, 0
        train = self.data.train.to(device)
        positions = torch.arange(len(train))
        chosen = self.data.augment if augment is None else Augment.of(augment)
        check_augment(chosen, train.shape, train.labels is None)
        chosen, count = settled(chosen, views, positions, seed)
        self.signals = Signals(
            Source("teacher", self.teacher, signals, self.task),
            Views(train, positions, chosen, count, device, default_workers() if workers is None else workers),
            budget=budget,
            folder=None if folder is None else usable(folder, "folder"),
            precision=resolve_precision(precision, device),
        )

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.signals.views.positions)

    def loader(self, batch_size: int, *, epoch: int | None = None, seed: int | None = None) -> Loader:
        """Batches of one epoch, in an order that is a function of ``seed`` (None: the cache's) and the epoch.

        Without ``epoch``, each pass over a loader is the next epoch of this cache: ``cache.epoch`` counts them, and can
        be set to go on from another. Batches have ``batch_size`` samples or a few less, so that all are of one size to
        within a sample; where several processes learn together, each gets its share of them.
        """
        return Loader(self, batch_size, self.seed if seed is None else seed, epoch)

    def fill(self) -> int:
        """Store all views that have room, now; returns how many samples all processes forwarded for it."""
        return sum(map(self._fill, range(self.signals.views.count)))

    def _fill(self, view: int) -> int:
        title, done = f"teacher: view {view + 1}/{self.signals.views.count}", 0
        with _spoken_here():
            if self.signals.cache is None:
                self.signals.open()
            with progress(title, len(self)) as advance:

                def report(now: int, total: int) -> None:
                    nonlocal done
                    advance(now - done)
                    done = now

                count = self.signals.fill_together(view, report)
        self.signals.load(view)
        return count

    def _attached(self, batch: Batch) -> TaughtBatch:
        self.signals.attach(batch)
        outputs = TeacherOutputs(batch.signals["teacher"], self.task.class_dim)
        return TaughtBatch(
            inputs=batch.inputs, labels=batch.labels, index=batch.index, view=batch.view, teacher=outputs
        )


class Loader:
    """The batches of an epoch with the teacher's outputs, as often as one goes over it: see `TeacherCache.loader`."""

    def __init__(self, cache: TeacherCache, batch_size: int, seed: int, epoch: int | None) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size = {shown(batch_size)} is no number of samples; expected one from 1.")
        self.cache, self.batch_size, self.seed, self.epoch = cache, batch_size, seed, epoch
        if (world := process()[1]) > len(cache) // len(self):
            raise UserError(
                f"batch_size = {batch_size} gives some of the {world} processes no sample; expected at least one for "
                "each: raise batch_size=…."
            )

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next passes are, until it is set again; the `Trainer` of Hugging Face calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.cache) // self.batch_size)

    def __iter__(self) -> Iterator[TaughtBatch]:
        cache, views = self.cache, self.cache.signals.views
        if (epoch := self.epoch) is None:
            epoch, cache.epoch = cache.epoch, cache.epoch + 1
        view = views.of_epoch(epoch)
        cache._fill(view)
        rank, world = process()
        order = shuffled(views.positions, len(self), self.seed, epoch)
        order = [part.tensor_split(world)[rank] for part in order]
        cache.signals.expect(view, order)
        yield from map(cache._attached, views.ordered(order, view))
        cache.signals.check()


def _opened(
    teacher: Any, given: Any, device: torch.device, seed: int, image_size: int | None, skip_bad: int, trust: bool
) -> tuple[Data, Any]:
    """The data in the order of the teacher's classes, and the teacher on the device, as a run opens them."""
    alone = given is not None and not isinstance(given, str | Path | Data) and not has_splits(given)
    with seeded(seed), about("teacher", teacher):
        data = load_data(
            given,
            image_size=image_size,
            whole=alone,
            ranges=known_ranges(teacher),
            held_out=held_out_by(teacher),
            skip_bad=skip_bad,
        )
        model = load_model(teacher, data=data, trained=True, trust=trust)
        data = framed_for(model, in_order_of(model.to(device), data), sized=False)
    place(model, device)
    return data, model


@contextmanager
def _spoken_here() -> Iterator[None]:
    """What is raised within names arguments as they are called here."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for there, here in SPOKEN.items():
            text = text.replace(there, here)
        raise UserError(text) from error
