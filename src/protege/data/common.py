"""The classes of Datasets that are the splits of one set, each of which may number them in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protege.data.classes import BARE, GIVEN, SORTED, among, check_labels, naming_of, ordered, union
from protege.data.mapped import numbered
from protege.naming import numbers


@dataclass(frozen=True)
class Common:
    """Classes and how they are numbered; labels by split (int64 [N]) as its items have them, text by its number in
    `names`; and what number each class of a split has, for those splits that number them otherwise."""

    classes: tuple[str, ...]
    numbering: str
    labels: dict[str, Tensor]
    names: dict[str, int] = field(default_factory=dict)
    place: dict[str, Tensor] = field(default_factory=dict)


def common_classes(
    datasets: Mapping[str, Any], labels: Mapping[str, Tensor | Sequence[int | str]], name: str
) -> Common:
    """What the Datasets, whose items have these labels, have in common: the names of all.

    One that does not name its classes is taken to number them as the first that does. Raises `UserError` for labels
    that are no classes.
    """
    order = sorted(datasets, key=lambda split: split != "train")
    namings = {split: naming_of(datasets[split], f"{split} {name}") for split in order}
    own = {split: naming.names for split, naming in namings.items() if naming is not None and naming.named}
    classes = union(own.values())
    texts = {split: {label for label in labels[split] if isinstance(label, str)} for split in order}
    if any(texts.values()):
        numbering = GIVEN if classes else SORTED
        classes = classes or ordered(union(ordered(found, "text") for found in texts.values()), "number")
        return Common(classes, numbering, *numbered({split: list(labels[split]) for split in order}, classes, name))
    found = {split: torch.as_tensor(labels[split], dtype=torch.int64) for split in order}
    for split, each in found.items():
        check_labels(name, {split: each}, own.get(split) or classes or None)
    if not classes:
        counts = [len(naming.names) for naming in namings.values() if naming is not None]
        return Common(numbers(max(*counts, *(int(each.max()) + 1 for each in found.values()), 0)), BARE, found)
    other = {split: names for split, names in own.items() if names != classes[: len(names)]}
    place = {split: among(names, classes, f"classes of {split} {name}") for split, names in other.items()}
    return Common(classes, GIVEN, found, place=place)
