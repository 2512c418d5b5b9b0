"""Pictures of held-out images that the teacher decides rightly and the student does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data import CLEAN, Augment, Data, batches, forward_size
from ..models import Model
from ..run.folder import remove
from ..torch_utils import eval_mode, logits_in

SHOWN, LOOKED_AT, BATCH = 12, 1000, 100


@torch.no_grad()
def draw_mistakes(teacher: Model, student: Model, data: Data, labelled: bool, out: Path) -> list[dict[str, Any]]:
    """Write some such images, of the test set where there is one, into ``out``; without labels, those that the two
    decide otherwise. What is returned names the classes; nothing for networks whose outputs are no classes."""
    samples = data.test if data.test is not None else data.val
    assert samples is not None
    if out.exists():
        remove(out)
    found: list[dict[str, Any]] = []
    order = torch.arange(min(LOOKED_AT, len(samples))).split(forward_size(samples, BATCH))
    names = data.classes or student.classes
    with eval_mode(teacher, student):
        for batch, positions in zip(batches(samples, list(order), CLEAN, Augment()), order, strict=True):
            both = [logits_in(network(batch.inputs)) for network in (teacher, student)]
            if both[0].dim() != 2 or data.task != "classification":
                return []
            theirs, ours = (outputs.argmax(1) for outputs in both)
            wrong = ours != theirs
            if labelled:
                wrong &= theirs == batch.labels
            for n in wrong.nonzero()[:, 0].tolist():
                out.mkdir(exist_ok=True)
                name = f"{int(positions[n])}.png"
                pixels = batch.inputs[n].cpu().movedim(0, -1).numpy()
                Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0]).save(out / name)
                called = [names[int(k)] if int(k) < len(names) else str(int(k)) for k in (theirs[n], ours[n])]
                found.append({"file": f"{out.name}/{name}", "teacher": called[0], "student": called[1]})
                if len(found) == SHOWN:
                    return found
    return found
