"""Recovering a pruned VGG-16 from few samples: this library against the procedure of the paper's authors.

    python benchmarks/fskd.py                                    # 500 samples of 32×32, both ways
    python benchmarks/fskd.py --samples 50 --width 0.25          # small
    python benchmarks/fskd.py --norm --solve kernel              # ours by whole kernels

The authors' procedure (FSKD, arXiv 1812.01839): for every layer a full forward of both networks on all samples, the
outputs of all pixels stacked, `numpy.linalg.lstsq`, and the solution put into the weights. Both start from the same
student, half of whose filters (by their L1 norm, in the first and the last six convolutions) are gone, and see the same
samples. Each runs in a process of its own; what is printed are its seconds, its peak resident memory above what it had
before the recovery, and the relative error of the student's outputs on samples that neither has seen, with the share of
them on which it agrees with the teacher. With ``--teacher`` (a model folder) and ``--data`` these are the outputs of a
trained network on real images, and its accuracy; without, of a random one on noise.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn

from protege import load_data, load_model
from protege.data import CLEAN, Augment
from protege.methods.fskd import FOLDS, PIXELS, recover
from protege.models import zoo
from protege.models.placing import place

MIB = 1 << 20


def prune(teacher: nn.Module, ratio: float) -> tuple[nn.Module, dict[str, list[int]]]:
    """A copy without the filters of the smallest L1 norm in the first and the last six convolutions."""
    student = copy.deepcopy(teacher)
    convolutions = [(name, m) for name, m in student.named_modules() if isinstance(m, nn.Conv2d)]
    kept: dict[str, list[int]] = {}
    before: Tensor | None = None
    for i, (name, conv) in enumerate(convolutions):
        norm = student.get_submodule(f"features.{int(name.split('.')[1]) + 1}")
        weight = conv.weight.data if before is None else conv.weight.data[:, before]
        order = conv.weight.data.abs().sum((1, 2, 3)).argsort(descending=True)
        some = i == 0 or i >= len(convolutions) - 6
        before = order[: round(len(order) * (1 - ratio))].sort().values if some else torch.arange(len(order))
        conv.weight.data, conv.out_channels, conv.in_channels = weight[before], len(before), weight.shape[1]
        for module in (conv, norm) if isinstance(norm, nn.BatchNorm2d) else (conv,):
            for value in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if value.dim() == 1:
                    value.data = value.data[before]
        kept[name] = before.tolist()
    assert before is not None
    student.classifier.weight.data = student.classifier.weight.data[:, before]
    student.classifier.in_features = len(before)
    return student, kept


def ours(student: nn.Module, teacher: nn.Module, kept: dict[str, list[int]], images: Tensor, kernels: bool) -> None:
    """The frontier sweep, in the layout that a run gives every network and image."""
    for network in (student, teacher):
        place(network, torch.device("cpu"))
    images = images.contiguous(memory_format=torch.channels_last)
    size = max(1, min(PIXELS // images[0, 0].numel(), -(-len(images) // FOLDS)))
    chunks = -(-len(images) // size)
    folds = [chunk % FOLDS for chunk in range(chunks)]
    recover(student, teacher, kept, lambda chunk: (images[chunk::chunks],) * 2, folds, kernels=kernels)


@torch.no_grad()
def theirs(student: nn.Module, teacher: nn.Module, kept: dict[str, list[int]], images: Tensor) -> None:
    """For every layer two full forwards and a least-squares problem over all pixels.

    The intercept is solved for as well, and a norm is first folded into its convolution, so that both procedures have
    the same freedom.
    """
    for name in kept:
        conv = student.get_submodule(name)
        follower = f"features.{int(name.split('.')[1]) + 1}"
        norm = student.get_submodule(follower)
        point = follower if isinstance(norm, nn.BatchNorm2d) else name
        outputs = []
        for network in (student, teacher):
            heard: list[Tensor] = []
            handle = network.get_submodule(point).register_forward_hook(
                lambda m, x, y, heard=heard: heard.append(y.clone())
            )
            for part in images.split(100):
                network(part)
            handle.remove()
            outputs.append(torch.cat(heard).movedim(1, -1).flatten(0, -2).numpy())
        stacked = np.hstack([outputs[0], np.ones((len(outputs[0]), 1), np.float32)])
        q = torch.from_numpy(np.linalg.lstsq(stacked, outputs[1][:, kept[name]], rcond=None)[0]).float()
        mix, c = q[:-1], q[-1]
        if isinstance(norm, nn.BatchNorm2d):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias + scale * (conv.bias - norm.running_mean)
            conv.weight.copy_(torch.einsum("io,i...->o...", mix, conv.weight * scale.view(-1, 1, 1, 1)))
            conv.bias.copy_(shift @ mix + c)
            norm.running_mean.zero_(), norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1), norm.bias.zero_()
        else:
            conv.weight.copy_(torch.einsum("io,i...->o...", mix, conv.weight))
            conv.bias.copy_(conv.bias @ mix + c)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def perform(given: argparse.Namespace) -> dict[str, float]:
    """One recovery in this process."""
    torch.manual_seed(0)
    labels = None
    if given.teacher:
        model, data = load_model(given.teacher), load_data(given.data)
        teacher = model.network.eval()
        drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: given.samples]
        images = model.input(data.train.fetch(drawn.sort().values, CLEAN, Augment()).inputs)
        test = data.test.fetch(torch.arange(min(2000, len(data.test))), CLEAN, Augment())
        unseen, labels = model.input(test.inputs), test.labels
    else:
        norm = "_bn" if given.norm else ""
        teacher = zoo.build(f"vgg16{norm}", {"num_classes": 10, "width": given.width}).eval()
        pixels = torch.nn.functional.interpolate(torch.randn(given.samples + 200, 3, 8, 8), 32, mode="bilinear")
        images, unseen = pixels[: given.samples], pixels[given.samples :]
    student, kept = prune(teacher, 0.5)
    student.eval()

    def outputs(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([network(part) for part in unseen.split(50)])

    wanted = outputs(teacher)

    def quality() -> dict[str, float]:
        found = outputs(student)
        values = {"error": float((found - wanted).square().sum() / wanted.square().sum())}
        values["agreement"] = float((found.argmax(1) == wanted.argmax(1)).float().mean())
        if labels is not None:
            values["accuracy"] = float((found.argmax(1) == labels).float().mean())
        return values

    first = {f"{key} before": value for key, value in quality().items()}
    held, clock = peak(), time.perf_counter()
    if given.way == "ours":
        ours(student, teacher, kept, images, given.solve == "kernel")
    else:
        theirs(student, teacher, kept, images)
    seconds = time.perf_counter() - clock
    return {"seconds": seconds, "MiB": peak() - held, **first, **quality()}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--samples", type=int, default=500)
    arguments.add_argument("--width", type=float, default=1.0, help="of the random VGG-16's channels")
    arguments.add_argument("--norm", action="store_true", help="with BatchNorm")
    arguments.add_argument("--solve", choices=["matrix", "kernel"], default="matrix", help="what ours solves for")
    arguments.add_argument("--teacher", help="a folder with a trained VGG")
    arguments.add_argument("--data", help="its images")
    arguments.add_argument("--way", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.way:
        print(json.dumps(perform(given)))
        return 0
    rows = {}
    for way in ("ours", "theirs"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        rows[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for key in rows["ours"]:
        print(f"{key:20s} ours {rows['ours'][key]:9.4g}   authors' {rows['theirs'][key]:9.4g}")
    faster, smaller = (rows["theirs"][key] / max(rows["ours"][key], 1e-3) for key in ("seconds", "MiB"))
    print(f"{faster:.1f} times as fast (target 12), {1 / smaller if smaller else 1:.2f} of the memory (target 0.33)")
    return int(faster < 12 or smaller < 3)


if __name__ == "__main__":
    sys.exit(main())
