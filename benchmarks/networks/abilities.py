"""What is tried with each network: an ability does it through the package's functions and checks its law by itself.

Each takes a `Pair` and a folder, and returns a verdict ("works" or "partly") and a note, or raises: `Wrong` where the
law does not hold, the package's `UserError` where it refuses.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from build import inputs_of, model_of, network_of
from rows import CLASSES, Row
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from zeroed import zeroed

import protege
from protege.methods.fskd import recover
from protege.models import Model, load_model
from protege.surgery import find_cuts, pair, readout, share, shrink, split
from protege.torch_utils import logits_in

Verdict = tuple[str, str]
RATIO = 0.3  # of the channels that are removed
SHRINKING = 20.0  # seconds of processor time that it may take


class Wrong(Exception):
    """A law that does not hold."""


@dataclass
class Pair:
    """The networks of a row, and what one ability leaves for the next: the shrunk student."""

    row: Row
    student: Model
    teacher: Model
    shrunk: tuple[nn.Module, dict[str, list[int]]] | None = field(default=None)

    def inputs(self, count: int, seed: int) -> Tensor:
        return inputs_of(self.row, count, seed)


def holds(true: bool, sentence: str) -> None:
    if not true:
        raise Wrong(sentence)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    if a.shape != b.shape or not a.isfinite().all():
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


@torch.no_grad()
def outputs(network: nn.Module, x: Tensor) -> Tensor:
    return logits_in(network.eval()(x.clone()))


@torch.no_grad()
def rounding(network: nn.Module, x: Tensor) -> float:
    """How far a network's outputs are from those in double precision: no law can be better than that."""
    try:
        precise = outputs(copy.deepcopy(network).double(), x.double() if x.is_floating_point() else x)
    except (RuntimeError, TypeError):
        return 0.0
    return apart(outputs(network, x).double(), precise)


class Unlabelled(Dataset):
    """Images without labels, as people give them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        if number >= len(self):
            raise IndexError(number)
        return self.images[number]


# ---- teaching --------------------------------------------------------------------------------------------------------


def kd(given: Pair, work: Path) -> Verdict:
    """A run of one epoch through the front door changes the student, and its folder loads and agrees."""
    settings: dict[str, Any] = {"method": "kd", "epochs": 1, "batch_size": 8, "seed": 0}
    teacher: Any = given.teacher
    student: Any = given.student
    if given.row.kind == "language":  # fresh ones: the vocabulary is the text's, and a teacher must know something
        data: Any = f"text:{_text(work / 'text')}?length=12&context=4"
        student, fresh = network_of(given.row, "student"), network_of(given.row, "teacher")
        teacher = protege.train(fresh, data, out=work / "teacher", epochs=12, batch_size=8, lr=0.01).student
    else:
        data = _samples(given)
    before = {name: value.clone() for name, value in given.student.state_dict().items()}
    trained = protege.distill(teacher, student, data, out=work / "run", **settings).student
    if given.row.kind != "language":
        after = trained.state_dict()
        holds(any(not torch.equal(value, after[name]) for name, value in before.items()), "nothing has changed")
    folder = work / "run" / "student"
    named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    again = load_model(folder, trust=True) if named else load_model(folder, network=copy.deepcopy(trained.network))
    if given.row.kind == "language":
        again.network.context = trained.network.context  # how many tokens are only read, which the data says
    raw = given.inputs(3, seed=7) % 40 if given.row.kind == "language" else given.inputs(3, seed=7)
    gap = apart(outputs(again, raw), outputs(trained, raw))
    holds(gap <= max(1e-4, 20 * rounding(trained.network, trained.prepared(raw))), f"the folder differs by {gap:.1e}")
    return "works", "" if named else "the folder needs network="


def _samples(given: Pair) -> Any:
    """Eight samples; where there must be labels, the teacher's own, so that it is a good one."""
    raw = given.inputs(8, seed=3)
    if given.row.kind == "image":
        return Unlabelled(raw)
    labels = torch.cat([outputs(given.teacher, part) for part in raw.split(4)]).argmax(1)
    if given.row.kind == "tokens":
        return TensorDataset(raw, labels)
    labels[0, 0, : CLASSES["segmentation"]] = torch.arange(CLASSES["segmentation"])  # every class is there
    return TensorDataset(raw, labels), TensorDataset(raw, labels)


def _text(folder: Path) -> Path:
    """Text that is easy to learn: each of 40 words follows the one before it."""
    folder.mkdir()
    numbers = random.Random(0)
    for part, lines in (("train", 120), ("valid", 10), ("test", 10)):
        text = ""
        for line in range(lines):
            first = numbers.randrange(40)
            text += " ".join(f"w{(first + k) % 40}" for k in range(12 if line else 40)) + "\n"
        (folder / f"{part}.txt").write_text(text, encoding="utf-8")
    return folder


def skd(given: Pair, work: Path) -> Verdict:
    """Stages in a row are the network, at another batch size too; each learns in training mode."""
    student, raw = given.student, given.inputs(4, seed=3)
    x, network = student.prepared(raw), student.network
    state = {name: value.clone() for name, value in network.state_dict().items()}
    pairs = pair(network, given.teacher.network, x[:2], given.teacher.prepared(raw)[:2])
    cuts = find_cuts(network, x[:2])
    stages = split(network, [each.student.name for each in pairs], x[:2])
    other = student.prepared(given.inputs(3, seed=9))
    live = (other.clone(),)
    with torch.no_grad():
        for stage in stages:
            live = stage.eval()(live)
    gap = apart(logits_in(live), outputs(network, other))
    holds(gap <= 1e-5, f"stages in a row differ from the network by {gap:.1e}")
    after = network.state_dict()
    holds(all(torch.equal(value, after[name]) for name, value in state.items()), "splitting changed the network")
    sizes, idle, live = [], [], (x.clone(),)
    for stage in copy.deepcopy(stages):
        result = stage.train()(tuple(value.detach() for value in live))
        (result[0] if stage.outputs else logits_in(result)).float().square().mean().backward()
        learning = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        missed = [name for name, p in learning.items() if p.grad is None]
        holds(len(missed) < len(learning), f"the stage {stage.name} learns nothing in training mode")
        sizes.append(sum(p.numel() for p in learning.values()))
        idle += missed
        live = result if stage.outputs else live
    largest = max(sizes) / sum(sizes)
    note = f"{len(pairs)} of {len(cuts)} cuts, the largest stage has {largest:.0%} of the parameters"
    note += f"; {len(idle)} parameters get no gradient, as {idle[0]}" if idle else ""
    kept = {id(p) for stage in stages for p in stage.parameters()}
    lost = [name for name, p in network.named_parameters() if id(p) not in kept]
    note += f"; {len(lost)} parameters are in no stage, as {lost[0]}" if lost else ""
    return ("partly" if len(pairs) < 2 or largest > 0.95 else "works"), note


def gpd(given: Pair, work: Path) -> Verdict:
    """The wide network and what is read out of it are the student; after a change of weights its slice is what is read
    out."""
    network, student = given.student.network, given.student
    torch.manual_seed(0)
    shared = share(network, 2, student.prepared(given.inputs(2, seed=3))).eval()
    x = student.prepared(given.inputs(3, seed=9))
    expected, own = outputs(network, x), rounding(network, x)
    bound = max(1e-4, 20 * own)
    with torch.no_grad():
        both = [logits_in(value) for value in shared(x.clone())]
    gaps = [apart(value, expected) for value in (*both, outputs(readout(shared), x))]
    said = ", ".join(f"{gap:.1e}" for gap in gaps)
    holds(max(gaps) <= bound, f"wide, student and readout differ from the network by {said}; rounding is {own:.1e}")
    with torch.no_grad():
        for p in shared.parameters():
            if p.is_floating_point() and p.numel() > 1:
                p.add_(0.02 * p.std() * torch.randn(p.shape))
        narrow = logits_in(shared(x.clone())[1])
    moved = apart(outputs(readout(shared), x), narrow)
    holds(moved <= bound, f"after a change of weights readout and student differ by {moved:.1e}")
    holds(apart(narrow, expected) > 0, "a change of weights changed nothing")
    total = sum(
        logits_in(value).float().square().mean() for value in shared.train()(student.prepared(given.inputs(4, 12)))
    )
    total.backward()
    idle = [name for name, p in shared.named_parameters() if p.requires_grad and p.grad is None]
    size = sum(p.numel() for p in shared.wide.parameters()) / sum(p.numel() for p in network.parameters())
    note = f"{size:.1f} times the parameters" + (f"; {len(idle)} get no gradient, as {idle[0]}" if idle else "")
    return ("works" if size > 1.5 else "partly"), note


# ---- smaller networks ------------------------------------------------------------------------------------------------


def shrinking(given: Pair, work: Path) -> Verdict:
    """A third of the channels less: the values of the original whose removed channels are zero, the shape of outputs,
    fewer parameters, and a folder that loads and agrees."""
    model, network, folder, refused = given.student, given.student.network, work / "shrunk", ""
    began = time.process_time()
    try:
        if given.row.kind not in ("image", "segmentation"):
            raise protege.UserError("")
        made = protege.shrink(model, ratio=RATIO, out=folder)
        smaller, kept = made.network, made.kept
    except protege.UserError as error:
        result = shrink(network, model.prepared(given.inputs(2, seed=3)), "l1", ratio=RATIO)
        smaller, kept, refused = result.network, result.kept, str(error)
    seconds = time.process_time() - began
    given.shrunk = smaller, kept
    x = model.prepared(given.inputs(3, seed=9))
    theirs, ours = outputs(network, x), outputs(smaller, x)
    holds(ours.shape == theirs.shape, f"the outputs are {list(ours.shape)}; those of the original {list(theirs.shape)}")
    try:
        gap = apart(ours, outputs(zeroed(network, smaller, x), x))
    except ValueError as error:
        raise Wrong(str(error)) from error
    bound = max(1e-4, 20 * rounding(smaller, x))
    holds(gap <= bound, f"differs by {gap:.1e} from the original whose removed channels are zero")
    left = sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in network.parameters())
    note = f"{left:.0%} of the parameters left"
    verdict = "works" if left < 0.75 else "partly"
    if seconds > SHRINKING:
        verdict, note = "partly", note + f"; it took {seconds:.0f} s"
    if refused:
        return "partly", note + f"; but the command refuses: {refused}"
    if folder.exists():
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
        again = load_model(folder, trust=True) if named else load_model(folder, network=copy.deepcopy(smaller))
        raw = given.inputs(3, seed=11)
        gap = apart(outputs(again, raw), outputs(made, raw))
        holds(gap <= 1e-5, f"the folder of the shrunk network differs by {gap:.1e}")
        note += "" if named else "; the folder needs network="
    return verdict, note


def fskd(given: Pair, work: Path) -> Verdict:
    """The shrunk network solved on 32 images is nearer to the original, on images that it has not seen too."""
    if given.shrunk is None:
        return "not tried", "not shrunk"
    (smaller, kept), model = given.shrunk, given.student
    x, fresh = (model.prepared(given.inputs(count, seed)) for count, seed in ((32, 5), (16, 6)))

    def error(batch: Tensor) -> float:
        ours, theirs = (torch.cat([outputs(net, part) for part in batch.split(8)]).double() for net in nets)
        return float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum().clamp(min=1e-30))

    nets, chunks = (smaller, model.network), x.split(8)
    before, fresh_before = error(x), error(fresh)
    solved = recover(smaller, model.network, kept, lambda n: (chunks[n], chunks[n]), [0, 1, 2, 3])
    after, fresh_after = error(x), error(fresh)
    note = f"error {before:.2g} to {after:.2g}, on fresh images {fresh_before:.2g} to {fresh_after:.2g}, "
    note += f"{len(solved['blocks'])} layers"
    if not solved["sweeps"]:
        return "partly", "the solve was undone: " + note
    holds(after < before, "the error is not lower: " + note)
    return ("works" if fresh_after < fresh_before else "partly"), note


# ---- files -----------------------------------------------------------------------------------------------------------


def onnx(given: Pair, work: Path) -> Verdict:
    """onnxruntime computes on raw images, of any batch size, what the model does."""
    import onnxruntime

    protege.export(given.student, to="onnx", out=work / "onnx")
    session = onnxruntime.InferenceSession(work / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    gaps = []
    for count in (1, 3):
        raw = given.inputs(count, seed=13)
        gaps.append(apart(torch.from_numpy(session.run(None, {"images": raw.numpy()})[0]), outputs(given.student, raw)))
    holds(max(gaps) <= 1e-3, f"onnxruntime differs by {max(gaps):.1e}")
    return ("works" if max(gaps) <= 1e-4 else "partly"), f"differs by {max(gaps):.0e}"


def int8(given: Pair, work: Path) -> Verdict:
    """The program's outputs go with the model's, for any batch size."""
    import torchao  # noqa: F401  its operators are in the program

    data = Unlabelled(given.inputs(16, seed=3))
    protege.export(given.student, to="int8", out=work / "int8", data=data, samples=16)
    program = torch.export.load(work / "int8" / "model_int8.pt2").module()
    raw = given.inputs(5, seed=14)
    with torch.no_grad():
        both = torch.stack([outputs(given.student, raw).flatten(), program(raw).flatten()]).double()
        holds(len(program(raw[:1])) == 1, "another batch size does not run")
    correlation = float(torch.corrcoef(both)[0, 1])
    return ("works" if correlation > 0.9 else "partly"), f"correlation {correlation:.3f}"


ABILITIES: dict[str, Callable[[Pair, Path], Verdict]] = {
    "kd": kd,
    "skd": skd,
    "shrink": shrinking,
    "fskd": fskd,
    "gpd": gpd,
    "onnx": onnx,
    "int8": int8,
}
TOGETHER = [["kd"], ["skd"], ["shrink", "fskd"], ["gpd"], ["onnx"], ["int8"]]  # in one process each
POPULAR_ONLY = {"onnx", "int8"}


def pair_of(row: Row) -> Pair:
    return Pair(row, model_of(row, "student", seed=0), model_of(row, "teacher", seed=1))
