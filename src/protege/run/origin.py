"""What decides the result of a run, as digests: what a run that goes on, or is finished already, must find again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import CLEAN, Augment, Data, Samples
from ..errors import UserError
from ..models import Model
from ..signals.identity import behaviour, weights_digest
from ..torch_utils import device_of, seeded, tensors_of, untouched
from .folder import SPEC_KEYS, means_the_same

VERSION = 4
PROBED = 8  # samples on which a network shows that it is the one
LARGEST = 2**28  # weights; of more no copy is made for that
FREE = frozenset(  # settings that decide how a run works, not what it comes to; and specs, for which digests stand
    (*SPEC_KEYS, "workers", "checkpoint_seconds", "log_with", "cache", "cache_budget", "trust", "time")
)


def origin_of(data: Data, teacher: Model | None, student: Model, lasting: bool) -> dict[str, Any]:
    """Digests of the data as it was loaded, and of the networks.

    ``lasting``: the student is one on disk, so that it begins with the same weights whenever it is loaded.
    """
    networks = {} if teacher is None else {"teacher": _teacher_digest(teacher, data)}
    return {"version": VERSION, **_data_digests(data), **networks, "student": _student_digest(student, data, lasting)}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe's settings those that decide the result, as JSON keeps them."""
    kept = {key: value for key, value in settings.items() if key not in FREE and value is not None}
    return json.loads(json.dumps(kept))


def earlier_origin(data: Data, teacher: Model | None, before: Mapping[str, Any]) -> dict[str, str]:
    """What was kept where ``before`` was: until version 3 digests of all decoded images; by version 0.1 number and
    labels of samples (samples where labels are not listed), and the teacher's weights."""
    if "version" in before:
        return _data_digests(data, pixels=True)
    sets = [samples for samples in _sets(data) if samples is not None]
    digest = hashlib.blake2b(repr([len(samples) for samples in sets]).encode(), digest_size=16)
    for samples in sets:
        labels = samples.labels
        digest.update(samples.fingerprint_of_pixels().encode() if labels is None else labels.cpu().numpy().tobytes())
    digests = {"data set": digest.hexdigest()}
    return digests if teacher is None else digests | {"teacher": weights_digest(teacher)}


def refuse_another(out: Path, before: Mapping[str, Any], now: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raise `UserError` where a run would go on, or be taken for finished, with others than it was begun with.

    ``before`` and ``now`` have digests by what they are of, ``recipe`` is what now stands in the run's recipe.
    """
    for what, digest in before.items():
        if what not in ("version", "settings", "held_out") and now.get(what, digest) != digest:
            raise UserError(
                f"resume=True found another {what} than {str(out)!r} was begun with; expected the same, so that the "
                "run ends as it would have: bring it back, or start anew with overwrite=True."
            )
    given, begun = deciding(recipe), before.get("settings")
    if begun is None:  # of version 0.1, or of networks alone
        return
    for key in sorted({*given, *begun}):
        then, value = begun.get(key), given.get(key)
        if then != value and (key == "phases" or not means_the_same(recipe, key, then)):
            raise UserError(
                f"{str(out / 'recipe.toml')!r} has {key} = {value!r}, but the run was begun with {then!r}; expected "
                "the same settings: change it back, or start anew with overwrite=True."
            )


def _data_digests(data: Data, pixels: bool = False) -> dict[str, str]:
    """Of what the samples hold, wherever they lie, and of the names of their classes."""
    parts = [
        None if s is None else (len(s), s.fingerprint_of_pixels() if pixels else s.fingerprint()) for s in _sets(data)
    ]
    return {
        "data set": _digest([*parts, data.places] if data.places else parts),
        "list of class names": _digest(tuple(data.classes)),
    }


def _teacher_digest(teacher: Model, data: Data) -> str:
    """Of its weights, how it wants its input, and what it answers."""
    return _digest([weights_digest(teacher), _input(teacher), _answers(teacher, data)])


def _student_digest(student: Model, data: Data, lasting: bool) -> str:
    """Of what a student is whatever it has learned: its parts, and its answers with weights made of their names.

    A network given in Python may have learned since the run began; what it had learned then is in the checkpoint.
    """
    state = tensors_of(student)
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in sorted(state.items())]
    structure = re.sub(r"0x[0-9a-f]+", "", repr(student.network))  # addresses
    weights = weights_digest(student) if lasting else ""
    shown = "" if sum(value.numel() for value in state.values()) > LARGEST else _shown(student, state, data)
    return _digest([shapes, structure, _input(student), weights, shown])


@torch.no_grad()
def _shown(student: Model, state: Mapping[str, Tensor], data: Data) -> str:
    """A student's answers with other weights; nothing where its weights cannot be changed in place."""
    kept = {name: value.clone() for name, value in state.items()}
    try:
        for name, value in state.items():
            if value.is_floating_point():
                value.copy_(_drawn(name, value))
        return _answers(student, data)
    except RuntimeError:
        return ""
    finally:
        for name, value in state.items():
            if not torch.equal(kept[name], value):
                value.copy_(kept[name])


def _drawn(name: str, like: Tensor) -> Tensor:
    """Numbers that depend on the name and shape of a weight alone, positive where it is a vector: variances are."""
    generator = torch.Generator().manual_seed(int(_digest([name, tuple(like.shape)])[:15], 16))
    sizes, signs = torch.rand((2, *like.shape), generator=generator) + 0.1
    if like.dim() < 2:
        return sizes.to(like)
    return (sizes * (signs - 0.6).sign() / like[:1].numel() ** 0.5).to(like)


def _answers(network: Model, data: Data) -> str:
    """What it answers to some samples, coarsely; nothing where it cannot."""
    positions = torch.arange(min(PROBED, len(data.train)))
    images = data.train.fetch(positions, CLEAN, Augment()).inputs  # one that is damaged is told
    try:
        raw = images.to(device_of(network))
        with untouched(network), seeded():  # as some networks draw numbers in eval mode, too
            return behaviour({"outputs": network(raw)})
    except Exception:  # whatever a user's network raises is told where it is called in earnest
        return ""


def _input(network: Model) -> str:
    """How it wants its input, to five digits: means that are measured differ in the last ones."""
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.5g}", repr(network.input))


def _sets(data: Data) -> list[Samples | None]:
    return [data.train, data.val, data.test]


def _digest(values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()
