"""Two loops without protege: the bare one that it is measured against, and the way that the field's code trains.

Both distil by logits, Hinton et al.'s loss at T = 4 with a tenth for the labels.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from work import Place

TEMPERATURE, LABELS = 4.0, 0.1


def loss_of(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    softened = F.log_softmax(student / TEMPERATURE, 1), F.log_softmax(teacher / TEMPERATURE, 1)
    kd = F.kl_div(*softened, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return LABELS * F.cross_entropy(student, labels) + (1 - LABELS) * kd


def bare(at: Place, student: nn.Module, pixels: Tensor, labels: Tensor, known: Tensor, batch: int) -> Callable[[], int]:
    """An epoch of a loop that does what protege's does for kd with remembered logits ``known``, and nothing else:
    shifted and flipped views, bfloat16, the loss, SGD, a moving average; forward and backward pass compiled, and the
    whole step recorded as a CUDA graph. On a processor it runs as it is. What is returned gives the number of images.
    """
    device, size = at.device, pixels.shape[1]
    student = student.to(device, memory_format=torch.channels_last).train()
    pixels, labels, known = pixels.to(device), labels.to(device), known.to(device)
    weights = list(student.parameters())
    average = [weight.detach().clone() for weight in weights]
    lr = torch.tensor(1e-3, device=device)
    optimizer = torch.optim.SGD(weights, lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=not at.small)
    line, index = torch.arange(size, device=device), torch.zeros(batch, dtype=torch.int64, device=device)

    def forward(index: Tensor) -> Tensor:
        shift = torch.randint(-4, 5, (2, batch, 1), device=device)
        mirror = torch.rand(batch, 1, device=device) < 0.5
        rows, columns = line + shift[0], line + shift[1]
        columns = torch.where(mirror, size - 1 - columns, columns)
        rows, columns = (size - 1 - (size - 1 - x.abs()).abs() for x in (rows, columns))
        images = pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        with torch.autocast(device.type, torch.bfloat16):
            logits = student((images.float() - 127.5) / 63.75)
        return loss_of(logits.float(), known[index], labels[index])

    compiled = forward if at.small else torch.compile(forward, dynamic=False)

    def step() -> None:
        compiled(index).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.005)

    launch: Callable[[], None] = step
    if not at.small:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(4):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        launch = graph.replay

    def epoch() -> int:
        order = torch.randperm(len(pixels), device=device).split(batch)
        for part in order:
            if len(part) == batch:
                index.copy_(part)
                launch()
        return len(pixels) // batch * batch

    return epoch


class Photos(torch.utils.data.Dataset):
    """Images as torchvision's transforms see them: cropped, mirrored and made tensors one by one."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.images, self.labels = [Image.fromarray(x) for x in pixels.numpy()], labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(self.images[i], 4)
        left, top = random.randrange(9), random.randrange(9)
        image = image.crop((left, top, left + self.images[i].width, top + self.images[i].height))
        image = ImageOps.mirror(image) if random.random() < 0.5 else image
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (tensor - 0.5) / 0.25, self.labels[i]


def usual(
    at: Place, student: nn.Module, teacher: nn.Module, pixels: Tensor, labels: Tensor, batch: int, workers: int
) -> Callable[[], int]:
    """An epoch as in mdistiller and most repositories of papers: a DataLoader whose workers transform PIL images, the
    teacher run in every step, float32, plain SGD, and the loss read after each step for the progress bar."""
    device = at.device
    student, teacher = student.to(device).train(), teacher.to(device).eval()
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(
        Photos(pixels, labels), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )

    def epoch() -> int:
        total = 0.0
        for images, answers in loader:
            images, answers = images.to(device, non_blocking=True), answers.to(device, non_blocking=True)
            with torch.no_grad():
                wanted = teacher(images)
            loss = loss_of(student(images), wanted, answers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return len(pixels)

    return epoch
