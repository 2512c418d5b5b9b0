"""Images a second of protege's loop, of a bare hand-written loop of the same mathematics, and of the usual way.

    python benchmarks/loop.py                      # resnet20, batch 128
    python benchmarks/loop.py --model resnet8x4 --rounds 5 --updates 20

The bare loop does what protege's does and nothing else: the same pixels augmented in memory, the same
precision and memory layout, the same optimiser and schedule. The usual way is a torch DataLoader with
per-image Pillow transforms, float32, contiguous. The three take turns in one process; figures are medians
over the rounds with their range.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common import run_epoch, setup_of
from PIL import Image, ImageOps

from protege.data import InMemory
from protege.methods import METHODS
from protege.models import InputSpec, Model
from protege.models.precision import autocast_for, resolve_precision
from protege.models.zoo import build
from protege.training import FitSettings
from protege.training.schedule import factor, make_optimizer

MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


def network(name: str) -> Model:
    torch.manual_seed(0)
    spec = InputSpec(channels=3, size=None, mean=MEAN, std=STD)
    return Model(build(name, {"num_classes": 100}), spec)


class Product:
    """Protege: the rate that it logs for an epoch of all images."""

    def __init__(self, name: str, pixels: torch.Tensor, labels: torch.Tensor, settings: FitSettings, device) -> None:
        self.settings, self.samples, self.student = settings, InMemory(pixels, labels).to(device), network(name)

    def round(self) -> float:
        phases = METHODS["none"].plan(setup_of("none", self.student, None, self.samples))
        return run_epoch(phases, self.student, self.samples, self.settings)["images_per_second"]


class Bare:
    """The same mathematics by hand: reflected shift, flip, normalise, one update."""

    def __init__(self, name: str, pixels: torch.Tensor, labels: torch.Tensor, settings: FitSettings, device) -> None:
        self.pixels, self.labels, self.device = pixels.to(device), labels.to(device), device
        self.model = network(name).network.to(device, memory_format=torch.channels_last)
        self.settings = settings
        self.autocast = autocast_for(resolve_precision("auto", device), device)
        self.mean = (torch.tensor(MEAN) * 255).view(1, 3, 1, 1).to(device)
        self.scale = 1 / (torch.tensor(STD) * 255).view(1, 3, 1, 1).to(device)

    def round(self) -> float:
        size, batch = self.pixels.shape[1], self.settings.batch_size or 128
        optimizer = make_optimizer(self.model, self.settings, batch)
        order = torch.randperm(len(self.pixels), device=self.device).split(batch)
        line = torch.arange(size, device=self.device)
        self.model.train()
        began = time.perf_counter()
        for update, index in enumerate(order):
            shift = torch.randint(-4, 5, (2, len(index), 1), device=self.device)
            mirror = torch.rand(len(index), 1, device=self.device) < 0.5
            rows, columns = line + shift[0], line + shift[1]
            columns = torch.where(mirror, size - 1 - columns, columns)
            rows, columns = (size - 1 - (size - 1 - x.abs()).abs() for x in (rows, columns))
            inputs = self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor("cosine", 0.05, update / len(order))
            with self.autocast():
                logits = self.model((inputs.float() - self.mean) * self.scale)
            loss = F.cross_entropy(logits.float(), self.labels[index])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        sync(self.device)
        return len(self.pixels) / (time.perf_counter() - began)


class Usual(torch.utils.data.Dataset):
    """What tutorials do: Pillow transforms image by image in a DataLoader, float32, contiguous."""

    def __init__(self, name: str, pixels: torch.Tensor, labels: torch.Tensor, settings: FitSettings, device) -> None:
        self.images = [Image.fromarray(x) for x in pixels.numpy()]
        self.labels, self.settings, self.device = labels, settings, device
        self.model = network(name).network.to(device)
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = ImageOps.expand(self.images[i], 4)
        x, y = np.random.randint(0, 9, 2)
        image = image.crop((x, y, x + self.images[i].width, y + self.images[i].height))
        if np.random.rand() < 0.5:
            image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (tensor - self.mean) / self.std, self.labels[i]

    def round(self) -> float:
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        batch = self.settings.batch_size or 128
        loader = torch.utils.data.DataLoader(self, batch, shuffle=True, num_workers=2)
        self.model.train()
        began = time.perf_counter()
        for inputs, labels in loader:
            loss = F.cross_entropy(self.model(inputs.to(self.device)), labels.to(self.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        sync(self.device)
        return len(self) / (time.perf_counter() - began)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--updates", type=int, default=15, help="updates in a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    device = Accelerator().device
    generator = torch.Generator().manual_seed(0)
    images = options.batch * options.updates
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 100, (images,), generator=generator)
    settings = FitSettings(epochs=1, batch_size=options.batch)
    ways = [("protege", Product), ("bare loop", Bare), ("usual way", Usual)]
    made = [(name, way(options.model, pixels, labels, settings, device)) for name, way in ways]
    rates: dict[str, list[float]] = {name: [] for name, _ in made}
    for number in range(options.rounds + 1):
        for name, way in made[number % 2 :] + made[: number % 2]:
            rate = way.round()
            if number:  # the first round warms up
                rates[name].append(rate)
    print(
        f"{options.model}, batch {options.batch}, {device.type}, {torch.get_num_threads()} threads, precision "
        f"{resolve_precision('auto', device)}, {options.rounds} rounds of {options.updates} updates"
    )
    for name, values in rates.items():
        print(f"{name:10} {statistics.median(values):9,.1f} images/s   ({min(values):,.1f} to {max(values):,.1f})")
    for rival in ("bare loop", "usual way"):
        ratios = [a / b for a, b in zip(rates["protege"], rates[rival], strict=True)]
        print(f"protege / {rival}: {statistics.median(ratios):.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
