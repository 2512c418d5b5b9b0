"""What must be right on a GPU: the same numbers as elsewhere, exactly or within what is promised, and no waiting."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from work import Case, Figures, Place, Skip, after_steps, epochs, holds, in_child, lesson, network, pixels, run

import protege
from protege.data import CLEAN, Augment, InMemory
from protege.methods import METHODS, Views
from protege.methods.targets import TARGETS
from protege.models.placing import place
from protege.numerics import exact
from protege.run.study import run_study
from protege.signals import Logits, Signals, Source
from protege.surgery import widen
from protege.tasks import TASKS

WINDOW = (10, 19)  # steps between which nothing may wait for the device: recordings are made before
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2}  # of what is remembered, as a share of the largest value of a batch


def views(at: Place) -> Iterator[Case]:
    """Views are the same bytes on every device."""
    for text in ("shift=4,flip", "crop=0.35,flip", "shift=4,flip,jitter=0.4", "crop=0.3,flip,jitter=0.8"):
        for masked in (False, True):
            yield text + ", masks" * masked, partial(_same_views, at, Augment.parse(text), masked)


def _same_views(at: Place, augment: Augment, masked: bool) -> Figures:
    count = 20 if at.small else 200
    images, compared = pixels(count, 48), 0
    samples = InMemory(images, images[..., 0].contiguous() % 8 if masked else torch.arange(count) % 7)
    order = torch.randperm(count).split(count // 4)
    for view in (CLEAN, 0, 1, 12345):
        sets = [Views(samples.to(d), torch.arange(count), augment, 2, torch.device(d)) for d in ("cpu", at.device)]
        for here, there in zip(*(made.ordered(order, view) for made in sets), strict=True):
            for name in ("inputs", "labels"):
                one, other = getattr(here, name), getattr(there, name).cpu()
                holds(torch.equal(one, other), f"{name} of view {view} differ in {int((one != other).sum())} values")
                compared += one.numel()
    return {"values compared": compared}


# ---- steps that do not wait ------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """On a processor, in updates: no operation for which a GPU would have to be waited for."""

    ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.ASKS and not any("/optim/" in f.filename for f in traceback.extract_stack()):  # it counts
            raise AssertionError(f"the step asks the device for a value ({name})")
        return function(*arguments, **(named or {}))


def no_waits(at: Place) -> Iterator[Case]:
    """Within a step and between two, no process waits for its GPU: each method and target, as it is and recorded."""
    cases: dict[str, tuple[str, str, dict[str, Any]]] = {name: ("images", name, {}) for name in METHODS}
    cases["fskd"] = ("images", "fskd", {"finetune_steps": 20})
    cases |= {f"kd, target {name}": ("images", "kd", {"target": name}) for name in TARGETS if name != "kd"}
    cases["kd, teacher online"] = ("images", "kd", {"views": "all", "augment": "crop=0.35,flip,jitter=0.4"})
    cases["kd, ema, clip, accumulate"] = ("images", "kd", {"ema": 0.99, "clip": 1.0, "accumulate": 2})
    for case in ("none on masks", "kd on masks", "skd on masks", "gpd on masks", "none on text", "kd on text"):
        method, _, task = case.partition(" on ")
        cases[case] = (task, method, {})
    for name, (task, method, settings) in cases.items():
        for how in ("off",) if at.small else ("off", "auto"):
            yield f"{name}, compile={how}", partial(_without_waits, at, task, method, {**settings, "compile": how})


def _without_waits(at: Place, task: str, method: str, settings: dict[str, Any]) -> Figures:
    first, last = (1, 4) if at.small else WINDOW
    rows, seen = 4, 0

    def look(step: int) -> None:
        nonlocal seen
        if step in (first, last) and not at.small:
            torch.cuda.set_sync_debug_mode("error" if step == first else "default")
        seen += step == last

    teacher, student, data = _lesson_of(at, task, method, rows * (last + 1))
    with after_steps(look, Waits if at.small else nullcontext):
        try:
            run(teacher, student, data, method, epochs=1, batch_size=rows, **{"views": 1, "lr": 1e-4, **settings})
        finally:
            if not at.small:
                torch.cuda.set_sync_debug_mode("default")
    holds(seen > 0, "no step was looked at")
    return {"phases": seen, "steps looked at": seen * (last - first)}


def _lesson_of(at: Place, task: str, method: str, count: int) -> tuple[Any, Any, Any]:
    """A teacher (None for methods without), a student and ``count`` samples, or a text."""
    if task == "text":
        text, teacher = at.folder / "text.txt", at.folder / "reader"
        text.write_text(" ".join(f"word{k % 7}" for k in range(6000)), encoding="utf-8")
        data: Any = f"text:{text}?length=16&context=16"
        if method == "kd" and not teacher.exists():
            protege.train("zoo:lstm?hidden=32", data, teacher, epochs=8, batch_size=16, lr=0.03)
        return str(teacher / "student") if method == "kd" else None, "zoo:lstm?hidden=16", data
    masks = task == "masks"
    known, data = lesson(at, "unet10", count, 32, 5, width=8) if masks else lesson(at, "resnet8", count, 16)
    student: Any = "zoo:unet10?width=4" if masks else "zoo:resnet8"
    if method == "fskd":
        student = protege.shrink(known, ratio=0.25, data=data, out=at.folder / "shrunk", overwrite=True)
    return known if METHODS[method].needs_teacher else None, student, data


# ---- what is remembered, solved and grown ----------------------------------------------------------------------------


def cached(at: Place) -> Iterator[Case]:
    """A teacher's remembered signals are those that it would compute, within the tolerance of the precision."""
    for precision, tolerance in TOLERANCES.items():
        yield f"logits in {precision}", partial(_cached_against_online, at, precision, tolerance)


def _cached_against_online(at: Place, precision: str, tolerance: float) -> Figures:
    count, worst = 80 if at.small else 2048, 0.0
    teacher, data = lesson(at, "resnet8" if at.small else "resnet56", count)
    place(teacher, at.device)
    source = Source("teacher", teacher, [Logits()], TASKS["classification"])
    transfer = Views(data.train.to(at.device), torch.arange(count), Augment(shift=4, flip=True), 2, at.device)
    folder = at.folder / f"signals {precision}"
    stored = Signals(source, transfer, budget=2**32, folder=folder, precision=precision).open()
    online = Signals(source, transfer, budget=0, precision=precision)
    for view in (0, 1):
        stored.fill(view)
        stored.load(view)
        for batch in transfer.ordered(torch.randperm(count).split(77), view):
            holds(stored.attach(batch) == len(batch), "the cache does not serve what it stores")
            one = batch.signals["teacher"]["logits"].clone()
            online.attach(batch)
            other = batch.signals["teacher"]["logits"]
            worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    holds(worst <= tolerance, f"they differ by {worst:.2g} of the largest; at most {tolerance:g} is promised")
    return {"largest difference": worst, "promised": tolerance}


def solved(at: Place) -> Iterator[Case]:
    """FSKD's solution on a GPU is that of the processor, and a widened network is the same function."""
    for solve in ("matrix", "kernel"):
        yield f"fskd, solve={solve}", partial(_same_solution, at, solve)
    yield "widening", partial(_same_function, at)


def _same_solution(at: Place, solve: str) -> Figures:
    """By processes of their own, one of which sees no GPU; this one has taken up none before."""

    def solution() -> tuple[str, np.ndarray, np.ndarray]:
        teacher, data = lesson(Place(True, at.until, at.folder), "vgg11_bn", 64, width=0.125)
        student = protege.shrink(teacher, ratio=0.25, data=data, out=at.folder / f"shrunk {os.getpid()}")
        settings: dict[str, Any] = {"solve": solve, "samples": 48, "ridge": 0.01, "precision": "fp32", "augmented": 0}
        done = run(teacher, student, data, "fskd", **settings)
        images = pixels(16).permute(0, 3, 1, 2)
        with torch.no_grad(), exact():
            outputs = [network.cpu()(images).numpy() for network in (done.student, teacher)]
        return done.result["environment"]["device"], outputs[0], outputs[1]

    first, second = (in_child(solution, **hidden)() for hidden in ({"CUDA_VISIBLE_DEVICES": ""}, {}))
    apart = float(np.linalg.norm(first[1] - second[1]) / np.linalg.norm(first[2]))
    holds(apart <= 1e-2, f"the two students' outputs lie {apart:.2g} of the teacher's apart; at most 0.01 is expected")
    return {"apart": apart, "devices": [first[0], second[0]]}


def _same_function(at: Place) -> Figures:
    worst = {}
    for device in {torch.device("cpu"), at.device}:
        with exact(), torch.no_grad():
            small = network("resnet20").network.to(device).eval()
            example = torch.randn(8, 3, 32, 32, device=device)
            wide, _ = widen(small, 2, example)
            wanted, got = small(example), wide.eval()(example)
        apart = worst[f"apart on {device.type}"] = float((wanted - got).norm() / wanted.norm())
        holds(apart <= 1e-4, f"on {device.type} they lie {apart:.2g} apart")
    return worst


# ---- killed and resumed ----------------------------------------------------------------------------------------------


def resumed(at: Place) -> Iterator[Case]:
    """With ``deterministic`` a run that is killed and resumed ends as one that was not, bit for bit."""
    for name in ("kd on images", "gpd on images", "kd on text", "kd on masks"):
        method, _, task = name.partition(" on ")
        yield name, partial(_killed_and_resumed, at, task, method)


def _killed_and_resumed(at: Place, task: str, method: str) -> Figures:
    inside = Place(at.small, at.until, at.folder / f"{method} {task}")
    inside.folder.mkdir()

    def made(out: str, resume: bool = False) -> None:
        teacher, student, data = _lesson_of(inside, task, method, 32 if at.small else 512)
        settings: dict[str, Any] = {"epochs": 4 if at.small else 8, "batch_size": 16 if at.small else 64}
        settings |= {"deterministic": True, "checkpoint_seconds": 0, "cache": f"{inside.folder}/{out} cache"}
        settings |= {"samples": 128} if task == "text" else {}
        run(teacher, student, data, method, inside.folder / out, eval_every=1, resume=resume, **settings)

    cublas = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # as the lesson uses the GPU before the run does
    try:
        in_child(partial(made, "whole"), **cublas)()
    except AssertionError as refused:
        if "no repeatable algorithm" in str(refused):
            raise Skip(str(refused)) from None
        raise
    broken, out = in_child(partial(made, "killed"), **cublas), inside.folder / "killed"
    while broken.process.is_alive() and (not (out / "metrics.jsonl").exists() or len(epochs(out)) < 2):
        time.sleep(0.005)
    broken.process.kill()
    broken.process.join()
    holds(broken.process.exitcode == -signal.SIGKILL, "the run ended before it was killed")
    in_child(partial(made, "killed", True), **cublas)()
    whole, again = (load_file(inside.folder / out / "student" / "model.safetensors") for out in ("whole", "killed"))
    unlike = [key for key in whole if not torch.equal(whole[key], again[key])]
    holds(not unlike, f"{len(unlike)} of {len(whole)} tensors differ, among them {unlike[:1]}")
    return {"tensors": len(whole)}


# ---- several processes, and memory -----------------------------------------------------------------------------------


def shared(at: Place) -> Iterator[Case]:
    """Several processes on one device."""
    yield "two processes of one run, by gloo", partial(_two_processes, at)
    yield "study --jobs 2", partial(_study, at)


def _two_processes(at: Place) -> Figures:
    def process(world: int) -> dict[str, np.ndarray]:
        if world > 1:
            torch.distributed.init_process_group("gloo")
        teacher, data = lesson(Place(True, at.until, at.folder), "resnet8", 64 if at.small else 512)
        settings: dict[str, Any] = {"epochs": 2, "batch_size": 32, "views": 1, "cache": f"{at.folder}/cache {world}"}
        out, settings = at.folder / f"of {world}", {**settings, "precision": "fp32", "lr": 0.01, "compile": "off"}
        done = run(teacher, "zoo:vgg11?width=0.125", data, "kd", out, **settings)  # without norms: they see a part
        return {key: value.cpu().numpy() for key, value in done.student.state_dict().items()}

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # which is also the number of the GPU
    pair = [in_child(partial(process, 2), RANK=str(k), **common) for k in range(2)]
    first, second = (wait() for wait in pair)
    alone = in_child(partial(process, 1))()
    unlike = [key for key in first if (first[key] != second[key]).any()]
    holds(not unlike, f"the two processes' students differ in {len(unlike)} tensors")
    apart = max(float(abs(first[key] - alone[key]).max()) for key in first)
    holds(apart < 1e-2, f"the student of two lies {apart:.2g} from that of one process")
    return {"largest difference to one process": apart}


STUDY = """
name = "two at a time"
seeds = [0]
grid.lr = [0.01, 0.02, 0.05, 0.1]
[recipe]
data = "synthetic:classes=4,superclasses=2,samples=400"
student = "zoo:mlp?hidden=32"
method = "none"
epochs = 3
batch_size = 50
"""


def _study(at: Place) -> Figures:
    (at.folder / "study.toml").write_text(STUDY, encoding="utf-8")
    runs = run_study(at.folder / "study.toml", at.folder / "study", jobs=2)["runs"]
    undone = [f"{run['out']}: {run['status']}" for run in runs if run["status"] != "done"]
    holds(not undone and len(runs) == 4, "; ".join(undone) or f"{len(runs)} runs instead of 4")
    results = (json.loads((at.folder / "study" / r["out"] / "result.json").read_text(encoding="utf-8")) for r in runs)
    return {"runs": len(runs), "devices": sorted({result["environment"]["device"] for result in results})}


def memory(at: Place) -> Iterator[Case]:
    """What a device has too little memory for is told in one sentence whose remedy works; ``auto`` is a batch that
    fits."""
    yield "out of memory", partial(_out_of_memory, at)
    yield "batch_size = auto", partial(_batch_that_fits, at)


def _out_of_memory(at: Place) -> Figures:
    if at.small:
        raise Skip("a processor has no memory of its own")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 3 * 2**30 / total))
    _, data = lesson(at, "resnet8", 16384)
    train = partial(run, None, "zoo:resnet56", data, "none", epochs=1, compile="off")
    try:
        train(batch_size=16384)
    except protege.UserError as error:
        sentence = str(error)
    else:
        raise AssertionError("16,384 images a batch fit into 3 GiB, which is not expected")
    remedy = re.search(r"set batch_size=(\d+)", sentence)
    holds(remedy is not None and "\n" not in sentence, f"no batch that fits is named: {sentence}")
    train(batch_size=int(remedy[1]))
    torch.cuda.set_per_process_memory_fraction(1.0)
    return {"batch": int(remedy[1]), "note": sentence}


def _batch_that_fits(at: Place) -> Figures:
    _, data = lesson(at, "resnet8", 64 if at.small else 8192, 16 if at.small else 32)
    out = at.folder / "auto"
    run(None, "zoo:resnet8" if at.small else "zoo:resnet56", data, "none", out, batch_size="auto", epochs=1)
    chosen = re.search(r"^batch_size = (\d+)$", (out / "recipe.toml").read_text(encoding="utf-8"), re.MULTILINE)
    holds(chosen is not None, "the recipe does not say which batch was taken")
    return {"batch": int(chosen[1]), "updates": epochs(out)[-1]["step"]}
