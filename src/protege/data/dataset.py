"""`Data`: a set's splits, its classes and what suits them; and `Request`, from which it is made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .augment import Augment
from .classes import BARE, GIVEN, SETTLED, SORTED, VECTORS, check_text, numbers, other_order
from .framing import Frame
from .labels import BY_CONTENT, UNLABELLED
from .loader import forward_size
from .ranges import Ranges
from .samples import Samples
from .split import hold_out, hold_out_by_content
from .views import CLEAN, SMALL, draws

_HELD_OUT = 0.2
_MEASURED = 2000
_LOG = logging.getLogger("protege")


@dataclass(frozen=True)
class Data:
    """Samples to learn from and to be judged on, their classes, and the augmentation that suits them.

    `name`: the spec. `task`: "classification". `val` and `test`: None where there are none. `superclasses`: the
    superclass of each class, where the data tells. `numbering`: how the classes got their numbers, see
    `protege.data.classes`. Where no sample of `train` has a label, all of its labels are -100, and `classes` may be
    empty. `ranges`: what is black and white in images of more than 8 bits (`protege.data.ranges`). `held_out`: how the
    test samples were held out of training, by "content" or "position"; empty where they are a split of their own;
    `places` is then a digest of their positions in the whole.
    """

    name: str
    task: str
    train: Samples
    val: Samples | None
    test: Samples | None
    classes: tuple[str, ...]
    augment: Augment
    superclasses: tuple[int, ...] | None = None
    ranges: Ranges = ()
    numbering: str = GIVEN
    held_out: str = ""
    places: str = ""

    def __post_init__(self) -> None:
        check_text(self.classes, f"classes of the data {self.name!r}")

    @property
    def named(self) -> bool:
        """Whether the classes have names; else `classes` holds their numbers."""
        return self.numbering != BARE and bool(self.classes)

    @property
    def in_one_order(self) -> bool:
        """Whether there is one order that the classes could have been numbered in, rather than two."""
        return self.numbering != SORTED or other_order(self.classes) is None

    @property
    def sets(self) -> dict[str, Samples]:
        """The samples of each split that there is."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {split: samples for split, samples in parts.items() if samples is not None}

    @property
    def shown(self) -> list[int]:
        """The classes that have samples; of pixels all, as these are not counted."""
        labels = [samples.labels for samples in self.sets.values() if samples.labels is not None]
        if not labels:
            return list(range(len(self.classes)))
        shown = torch.cat(labels).unique()
        return shown[shown != UNLABELLED].tolist()

    def numbered(self, classes: tuple[str, ...], place: Sequence[int | None], named: bool = True) -> Data:
        """The same data under other classes: what is its class k now is number `place[k]` of `classes`; None for a
        class without samples."""
        at = [0 if number is None else number for number in place]
        sets = self.sets
        if at != list(range(len(at))):
            new = {id(samples): samples.relabelled(torch.tensor(at)) for samples in sets.values()}
            sets = {split: new[id(samples)] for split, samples in sets.items()}
        groups = None
        if self.superclasses is not None and sorted(at) == list(range(len(classes))):
            groups = tuple(self.superclasses[at.index(number)] for number in range(len(classes)))
        renumbered = replace(self, train=sets["train"], val=sets.get("val"), test=sets.get("test"))
        return replace(renumbered, classes=classes, superclasses=groups, numbering=SETTLED if named else BARE)

    def framed(self, frame: Frame, size: tuple[int, int] | None = None) -> Data:
        """The same data with whole photos brought to their size by another rule, see `Samples.framed`."""
        new: dict[str, Any] = {split: samples.framed(frame, size) for split, samples in self.sets.items()}
        changed = any(new[split] is not samples for split, samples in self.sets.items())
        return replace(self, **new) if changed else self

    def unlabelled(self) -> Data:
        """The same images without their labels and classes, for networks whose outputs are vectors."""
        nothing = torch.full((len(self.classes),), UNLABELLED)
        new = {id(samples): samples.relabelled(nothing) for samples in self.sets.values()} if self.labelled else {}
        sets: dict[str, Any] = {split: new.get(id(samples), samples) for split, samples in self.sets.items()}
        return replace(self, **sets, classes=(), superclasses=None, numbering=VECTORS)

    @property
    def labelled(self) -> bool:
        """Whether training samples have labels (those of pixels and tokens are taken to)."""
        labels = self.train.labels
        return labels is None or not bool((labels == UNLABELLED).all())

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        order = torch.argsort(draws(0, torch.arange(len(self.train)), 0, 1)[:, 0], stable=True)
        count, total, squares = 0, torch.zeros(1), torch.zeros(1)
        self.train.load(order[:_MEASURED])
        for index in order[:_MEASURED].split(forward_size(self.train, 256)):
            values = self.train.fetch(index, CLEAN, Augment()).inputs.to("cpu", torch.float64) / 255
            count += values.numel() // values.shape[1]
            total = total + values.sum((0, 2, 3))
            squares = squares + values.square().sum((0, 2, 3))
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, pixels as 0 to 1, over at most 2,000 training
        images."""
        return self._statistics


def check_complete(data: Data) -> None:
    """Raise `UserError` unless a network can learn the data's classes from it alone, and be tested: there are two or
    more, each with a training sample. One that has a teacher needs less: the classes are the teacher's."""
    if data.train.labels is None or not data.labelled:
        return
    if len(data.classes) < 2:
        only = f", '{data.classes[0]}'" if data.named else ""
        raise UserError(
            f"data '{data.name}' has only one class{only}; at least two are expected, or images without classes in a "
            "folder without others and a teacher for them."
        )
    counts = torch.bincount(data.train.labels[data.train.labels != UNLABELLED], minlength=len(data.classes))
    empty = (counts == 0).nonzero()
    if len(empty):
        first = int(empty[0])
        name = f" ('{data.classes[first]}')" if data.named else ""
        remedy = "remove it from the other splits" if data.named else "number the labels from 0 without gaps"
        raise UserError(
            f"class {first}{name} of '{data.name}' has no training sample; expected some of every class, as there is "
            f"no teacher that knows it: add some, or {remedy}."
        )
    if data.test is None:
        raise UserError(
            f"data '{data.name}' has too few samples ({len(data.train)}) to hold out a test split; add some."
        )


@dataclass(frozen=True)
class Request:
    """What `load_data` was asked for: a spec, what stands behind its colon (also as a path, if it is one), its options,
    and the arguments."""

    spec: str
    rest: str
    path: Path
    options: dict[str, str]
    image_size: int | None
    memory_limit: int
    scratch: Path
    whole: bool
    ranges: Ranges
    held_out: str
    decoded_size: int | None = None
    skip_bad: int = 0

    def data(
        self,
        splits: Mapping[str, Samples],
        classes: tuple[str, ...],
        places: Callable[[], Tensor] | None = None,
        *,
        augment: Augment | None = None,
        numbering: str = "",
        superclasses: tuple[int, ...] | None = None,
        ranges: Ranges = (),
    ) -> Data:
        """Data of images with labels or, where samples have none, with masks.

        Without a test split the validation split is taken, or all of training if `whole`; else a fifth of it is held
        out, by what samples hold (`places` tells the place of each, see `contents`) or, as before version 0.2, by
        position. `augment`: by default pad-and-crop by an eighth and flip for images up to 64 pixels, random resized
        crop and flip for larger ones.
        """
        train, val, test = (splits.get(split) for split in ("train", "val", "test"))
        assert train is not None
        masked = train.labels is None
        if augment is None:
            short, long = min(train.shape[1:]), max(train.shape[1:])
            small = not masked and long <= SMALL
            # of masked images half of the area and more: what is small stays seen, as in CamVid's poles
            augment = (
                Augment(shift=short // 8, flip=True) if small else Augment(crop=0.5 if masked else 0.35, flip=True)
            )
        numbering = numbering or (BARE if classes == numbers(len(classes)) else GIVEN)
        task = "segmentation" if masked else "classification"
        data = Data(self.spec, task, train, val, test, classes, augment, superclasses, ranges, numbering)
        if test is not None:
            return data
        if val is not None:
            _LOG.info("'%s' has no test split; its validation split is used as test.", self.spec)
            return replace(data, val=None, test=val)
        if self.whole:
            return replace(data, test=train)
        if not data.labelled:
            _LOG.info(
                "'%s' has no labels: its %d images can teach; students are judged by agreement with the teacher.",
                self.spec,
                len(train),
            )
            return data
        labels = (
            torch.zeros(len(train), dtype=torch.int64) if train.labels is None else train.labels
        )  # nothing to stratify
        if by_content := self.held_out == BY_CONTENT:
            assert places is not None
            kept, held = hold_out_by_content(places(), labels, _HELD_OUT)
        else:
            kept, held = hold_out(torch.arange(len(train)), labels, _HELD_OUT, seed=0)
        if not len(held):
            _LOG.info("'%s' has no test split, and too few samples (%d) to hold one out.", self.spec, len(train))
            return data
        _LOG.info(
            "'%s' has no test split; %d of %d samples, some of each class, are held out.",
            *(self.spec, len(held), len(train)),
        )
        if not by_content:
            _LOG.warning(
                "a network given was made before held-out samples of '%s' were chosen by what they hold, and so they "
                "are chosen by their order, as they were then: once samples are added or renamed, some may be among "
                "them that it has learned from. Give a test split to be sure.",
                self.spec,
            )
        digest = hashlib.sha256(held.numpy().tobytes()).hexdigest() if by_content else ""
        return replace(data, train=train.part(kept), test=train.part(held), held_out=self.held_out, places=digest)
