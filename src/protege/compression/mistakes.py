"""Pictures of images that the teacher decides rightly and the student does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data import CLEAN, Augment, Batch, Data, batches, forward_size
from ..models import Model
from ..run.folder import remove
from ..tasks import Task
from ..tasks.task import Shown
from ..torch_utils import eval_mode, logits_in

SHOWN, LOOKED_AT, BATCH = 12, 1000, 100
FOLDER, SCENES = "mistakes", "pictures"


@torch.no_grad()
def draw_mistakes(
    teacher: Model, student: Model, data: Data, task: Task, labelled: bool, out: Path
) -> list[dict[str, Any]]:
    """Write some such images, of the test set where there is one, into ``out/mistakes``; without labels, those that the
    two decide otherwise. What is returned names the classes. Of segmentations, the scenes in which most pixels are
    such are written into ``out/pictures``."""
    for name in (FOLDER, SCENES):
        remove(out / name)
    channels = data.train.shape[0]
    if not task.named_classes or channels not in (1, 3):
        return []
    samples = data.test if data.test is not None else data.val
    assert samples is not None
    order = torch.arange(min(LOOKED_AT, len(samples))).split(forward_size(samples, BATCH))
    found: list[dict[str, Any]] = []
    losses: list[tuple[float, int]] = []
    names = data.classes or student.classes
    with eval_mode(teacher, student):
        for batch, positions in zip(batches(samples, list(order), CLEAN, Augment()), order, strict=True):
            theirs, ours = (logits_in(network(batch.inputs)).argmax(task.class_dim) for network in (teacher, student))
            lost = (ours != theirs) & ((theirs == batch.labels) if labelled else torch.tensor(True))
            if lost.dim() > 1:
                losses += zip(lost.flatten(1).float().mean(1).tolist(), positions.tolist(), strict=True)
                continue
            for n in lost.nonzero()[:, 0].tolist()[: SHOWN - len(found)]:
                called = [names[int(k)] if int(k) < len(names) else str(int(k)) for k in (theirs[n], ours[n])]
                path = _saved(batch, n, out / FOLDER / f"{int(positions[n])}.png")
                found.append({"file": str(path.relative_to(out)), "teacher": called[0], "student": called[1]})
    if losses and labelled:
        worst = torch.tensor([position for _, position in sorted(losses, reverse=True)[: task.drawn]])
        batch = next(batches(samples, [worst], CLEAN, Augment()))
        networks = {"teacher": teacher, "student": student}
        task.pictures(Shown(batch.inputs, batch.labels, worst.tolist(), networks, names), out)
    return found


def _saved(batch: Batch, n: int, path: Path) -> Path:
    """An image of the batch as a file."""
    path.parent.mkdir(exist_ok=True)
    pixels = batch.inputs[n].cpu().movedim(0, -1).numpy()
    Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0]).save(path)
    return path
