"""`protege shrink`: a smaller copy of a network as a model folder, which remembers what it kept of the original."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Data, load_data
from ..errors import UserError, told
from ..files import is_shrunk, write_json
from ..models import Model, count_macs, count_parameters, framed_for, held_out_by, known_ranges, load_model
from ..models.classes import in_order_of
from ..models.saving import described
from ..models.storage import bytes_of
from ..numerics import exact
from ..settings import public
from ..surgery import Shrunk, Walk, compose, decouple, plan_alignment
from ..surgery import record as edits_between
from ..surgery import shrink as prune
from ..surgery.pruning import PARTS, together
from ..tasks import shipped_task
from ..torch_utils import copy_network, device_of, eval_mode
from .api import evaluate
from .folder import MODEL_FILES, check_out
from .latency import speeds

HOWS = ("l1", "slim", "decouple")
RECORD = "shrink.json"

logger = logging.getLogger(__name__)


@public
@exact()
def shrink(
    model: str | Path | nn.Module,
    *,
    how: str = "l1",
    ratio: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    layers: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    rank: int | None = None,
    data: Any = None,
    image_size: int | None = None,
    skip_bad: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    trust: bool = False,
    dry_run: bool = False,
) -> Model:
    """Shrink a model and leave it as a folder in ``out``, with a ``shrink.json`` that tells the sizes.

    ``how`` is "l1" or "slim" (pruning, see `protege.surgery.shrink`) or "decouple" (`protege.surgery.decouple`).
    Pruning takes a ``ratio`` of channels to remove, overall or {layer: ratio}; decoupling takes a ``rank``; all take
    ``macs``, the share of multiply-adds to be left. ``layers`` (names, or patterns such as "layer3.*") limits the
    change to some, and ``parts`` pruning to the "heads" of attentions, the residual "stream" or the "hidden"
    channels of blocks (without it all are thinned). The model stays as it is; the result is a `Model` whose `kept`
    names, for each layer, the channels it still has of the network that was first shrunk (of a model shrunk twice: of
    the first).

    ``data`` gives a network that takes images of any size the size to count at (brought to ``image_size`` as in a run
    with it), and the accuracy before and after; its labels are used for nothing else. ``skip_bad`` is
    that of a run, ``trust`` is that of
    `protege.load_model`. With ``dry_run`` nothing is
    written. ``shrink.json`` and warnings name the layers that stay whole because removing channels of theirs would
    change more than that they are gone (``left_out``), and tell beforehand where `fskd` would refuse the result
    (``fskd``). Raises `UserError` for bad input, before anything is written.
    """
    _check_options(how, ratio, rank, parts, out, dry_run)
    if out is not None and not dry_run:
        replaced = RECORD, *MODEL_FILES
        check_out(
            Path(out),
            resume=None,
            overwrite=overwrite,
            owned=is_shrunk,
            proof=f"{RECORD} of a shrunk model",
            replaced=replaced,
        )
    opened = open_for(data, image_size, model, skip_bad)
    original = copy_network(load_model(model, data=opened, trained=True, trust=trust))  # it may be the caller's own
    opened = opened and framed_for(original, in_order_of(original, opened))
    raw = _tokens(original, opened) if original.input.kind == "tokens" else example_of(original, opened)
    prepared = original.prepared(raw)
    if how == "decouple":
        result = decouple(original.network, rank, macs=macs, example=prepared, layers=layers)
    else:
        result = prune(
            original.network,
            prepared,
            how,
            ratio=ratio,
            macs=macs,
            layers=layers,
            parts=PARTS if parts is None else parts,
        )
    shrunk = shrunk_model(original, result, raw, opened)
    record: dict[str, Any] = {
        "version": 1,
        "model": str(model) if isinstance(model, str | Path) else type(original.network).__name__,
        "how": how,
        "ratio": dict(ratio) if isinstance(ratio, Mapping) else ratio,
        "macs": macs,
        "layers": None if layers is None else list(layers),
        "rank": rank,
        "parts": {part: {"before": before, "after": after} for part, (before, after) in result.parts.items()},
        "left_out": [{"layers": list(part.layers), "why": part.why} for part in result.left_out],
        "fskd": _fskd_refusal(original.network, result, prepared),
        "before": _figures(original, raw, opened),
        "after": _figures(shrunk, raw, opened),
    }
    if not dry_run:
        times = speeds([original, shrunk], raw)
        record["speed"] = {
            role: [x.record() for x in each] for role, each in zip(("before", "after"), times, strict=True)
        }
    for part in together(result.left_out):
        logger.warning("left whole: %s", part)
    if record["fskd"] is not None:
        logger.warning("fskd would refuse the shrunk network, as %s", record["fskd"])
    for line in _lines(record):
        logger.info("%s", line)
    if out is not None and not dry_run:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_json(Path(out) / RECORD, record)  # first: what lies beside it may be made anew
        shrunk.save(out, overwrite=True)
        logger.info("the shrunk model is in %s", out)
    return shrunk


def shrunk_model(original: Model, result: Shrunk, raw: Tensor, data: Data | None) -> Model:
    """What is left of a model, which knows what it kept and how it is built again; `UserError` where it would be built
    as another network."""
    kept = compose(original.kept, result.kept) if original.kept else result.kept
    classes, named = original.classes, original.named
    if not classes and data is not None:
        classes, named = data.classes, data.named
    shrunk = Model(result.network, original.input, original.source, classes, original.task, kept=kept, named=named)
    shrunk.held_out = original.held_out
    shrunk.layout, shrunk.shape = original.layout, tuple(raw.shape[1:])
    shrunk.structure = _reproducible(shrunk, original)
    return shrunk


def open_for(data: Any, image_size: int | None, model: Any, skip_bad: int = 0) -> Data | None:
    """The data that a model is shrunk or exported with, if any."""
    if data is None and image_size is not None:
        raise UserError(f"image_size = {image_size} is given without data; expected both: add data=….")
    if data is None:
        return None
    ranges, way = known_ranges(model), held_out_by(model)
    return load_data(data, image_size=image_size, ranges=ranges, held_out=way, skip_bad=skip_bad)


def example_of(model: Model, data: Data | None, count: int = 2) -> Tensor:
    """Raw uint8 images [count, C, H, W] of the size the model takes, else of the data's: noise, the same each time."""
    if model.input.kind != "image":
        raise UserError("the model takes tokens; expected a network for images: export knows only these.")
    if data is not None:
        shape = tuple(data.train.shape)
    elif model.input.size is not None:
        shape = (model.input.channels, *model.input.size)
    else:
        raise UserError("the model takes images of any size and none is given; expected one: give data=… with such.")
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=noise).to(device_of(model))


def _tokens(model: Model, data: Data | None, count: int = 2) -> Tensor:
    """Words of the data's vocabulary [count, length], the same each time."""
    if data is None:
        raise UserError("the model takes tokens of a text and none is given; expected one: add data='text:…'.")
    words = torch.Generator().manual_seed(0)
    return torch.randint(0, len(data.classes), (count, *data.train.shape), generator=words).to(device_of(model))


def _check_options(how: str, ratio: Any, rank: int | None, parts: Any, out: Any, dry_run: bool) -> None:
    if how not in HOWS:
        raise UserError(f"how = {how!r} is no way of shrinking; expected one of {', '.join(HOWS)}: change how=….")
    if how == "decouple" and ratio is not None:
        raise UserError(f"ratio={ratio} does not go with how='decouple'; expected rank=… or macs=…: leave it out.")
    if how != "decouple" and rank is not None:
        raise UserError(f"rank={rank} does not go with how={how!r}; expected ratio=… or macs=…: leave it out.")
    if how == "decouple" and parts is not None:
        raise UserError(f"parts={parts} does not go with how='decouple'; expected how='l1' or 'slim': leave it out.")
    if out is None and not dry_run:
        raise UserError("'out' is missing; expected the folder for the shrunk model as out=….")


def _reproducible(model: Model, original: Model) -> list[dict[str, Any]]:
    """The structure by which a folder will make the network again, or the network of the user's own that the folder is
    loaded into; `UserError` where that gives another one."""
    how = described(model)
    if how.source["model"] is not None:
        return how.structure
    if model.source["model"] is None:
        with suppress(UserError):  # a change that no structure can tell
            return [*original.structure, *edits_between(original.network, model.network)]
        return []
    raise UserError(
        f"the shrunk {model.source['model']} is another network when it is built again from the sizes of its "
        "modules; expected the same: some number in its code follows the channels, so name other layers=…, or "
        "shrink it with protege.surgery and keep the module."
    )


def _fskd_refusal(original: nn.Module, shrunk: Shrunk, prepared: Tensor) -> str | None:
    """Why `fskd` could not align the shrunk network with its original; None where it can."""
    try:
        with eval_mode(original, shrunk.network):
            plan_alignment(Walk(shrunk.network, "student", prepared), Walk(original, "teacher", prepared), shrunk.kept)
    except Exception as error:
        return told(error)
    return None


def _figures(model: Model, raw: Tensor, data: Data | None) -> dict[str, Any]:
    params, macs = count_parameters(model.network), count_macs(model, raw)
    sizes = {"params": params, "macs": macs, "bytes": bytes_of(model.network)}
    task = shipped_task(model.task)
    judged = task is not None and task.labelled and data is not None and data.test is not None and bool(data.classes)
    return {**sizes, "metrics": evaluate(model, data) if judged else {}}


def _lines(record: Mapping[str, Any]) -> list[str]:
    before, after = record["before"], record["after"]
    lines = [
        f"{name:<12} {before[key]:>15,} → {after[key]:>15,}  ({after[key] / max(before[key], 1):.1%})"
        for name, key in (("parameters", "params"), ("MACs", "macs"), ("bytes", "bytes"))
    ]
    for was, now in zip(*record.get("speed", {}).values(), strict=True):
        name, times = f"ms, {was['batch']} at once", (was["milliseconds"], now["milliseconds"])
        lines.append(f"{name:<12} {times[0]:>15.3g} → {times[1]:>15.3g}  ({now['ratio']:.1%})")
    for part, counts in record["parts"].items():
        share = counts["after"] / counts["before"]
        lines.append(f"{part:<12} {counts['before']:>15,} → {counts['after']:>15,}  ({share:.1%})")
    for name in [key for key in ("accuracy", "miou") if key in before["metrics"]]:
        lines.append(f"{name:<12} {before['metrics'][name]:>15.4f} → {after['metrics'][name]:>15.4f}")
    return lines
