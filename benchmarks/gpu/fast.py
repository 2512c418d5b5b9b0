"""How fast it is: images a second beside two other loops, what a step asks of the device, and photos from disk."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from rivals import bare, usual
from torch.profiler import ProfilerActivity, profile
from work import Case, Figures, Place, after_steps, holds, in_child, lesson, network, pixels, rate, run

from protege.methods import METHODS

WAYS: dict[str, tuple[str, dict[str, Any], int]] = {  # name → method, its settings, updates in an epoch of 128 images
    "kd cached": ("kd", {"views": 2, "ema": 0.995}, 200),
    "none": ("none", {"views": "all"}, 200),
    "kd online": ("kd", {"views": "all"}, 100),
    "skd stage": ("skd", {"views": 1}, 50),
    "gpd": ("gpd", {"views": "all"}, 50),
}
EPOCHS = 6
BARE, USUAL = 0.9, 10.0  # targets: at least so much of the bare loop, and so many times the usual way


def _sizes(at: Place) -> tuple[str, str, int, tuple[int, ...]]:
    """Teacher, student, side of the images, batches."""
    return ("resnet20", "resnet8", 16, (16,)) if at.small else ("resnet56", "resnet20", 32, (128, 1024))


def _train(at: Place, way: str, batch: int, compile: str, out: str, epochs: int = EPOCHS, updates: int = 0) -> None:
    """A run of one of the `WAYS`; what is measured is its first phase."""
    method, settings, usually = WAYS[way]
    big, small, side, _ = _sizes(at)
    updates = updates or (3 if at.small else usually if batch < 1000 else usually // 4)
    teacher, data = lesson(at, big, updates * batch, side)
    settings = {"batch_size": batch, "epochs": epochs, "eval_every": epochs, "lr": 1e-3, "compile": compile, **settings}
    needed = teacher if METHODS[method].needs_teacher else None
    run(needed, f"zoo:{small}", data, method, at.folder / out, overwrite=True, **settings)


def compiling(at: Place) -> Iterator[Case]:
    """PyTorch keeps on disk what it has compiled: all that will be measured is compiled at the same time, beside the
    checks that measure nothing."""
    yield "all that is measured", partial(_compile_all, at)


def _compile_all(at: Place) -> Figures:
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    waits = {}
    for batch in _sizes(at)[-1]:
        waits[f"bare loop, batch {batch}"] = in_child(partial(_bare, at, batch, {}), **threads)
        for way in ["none"] if at.small else WAYS:
            name = f"{way}, batch {batch}"
            waits[name] = in_child(partial(_train, at, way, batch, "on", name, 1, 12), **threads)
    failed = []
    for name, wait in waits.items():
        try:
            wait()
        except AssertionError as error:
            failed.append(f"{name}: {error}")
    holds(not failed, "; ".join(failed))
    return {"compiled": len(waits)}


# ---- images a second -------------------------------------------------------------------------------------------------


def rates(at: Place) -> Iterator[Case]:
    """Images a second of each method, as it is and compiled and recorded, beside the bare loop and the usual way."""
    measured: dict[str, float] = {}
    for batch in _sizes(at)[-1]:
        for way in WAYS:
            for compile in ("off",) if at.small and way != "none" else ("off", "on"):
                yield f"{way}, batch {batch}, compile={compile}", partial(_rate, at, way, batch, compile, measured)
            if way == "kd cached":
                yield f"bare loop, batch {batch}", partial(_bare, at, batch, measured)
                if batch < 1000:
                    yield f"usual way, batch {batch}", partial(_usual, at, batch, measured)


def _rate(at: Place, way: str, batch: int, compile: str, measured: dict[str, float]) -> Figures:
    out = f"{way} {batch} {compile}"
    _train(at, way, batch, compile, out)
    measured[out] = rate(at.folder / out)
    return {"images/s": measured[out]}


def _bare(at: Place, batch: int, measured: dict[str, float]) -> Figures:
    _, small, side, _ = _sizes(at)
    count = batch * (3 if at.small else 100)
    known, labels = torch.randn(count, 10), torch.randint(0, 10, (count,))  # of any values: they cost the same
    epoch = bare(at, network(small).network, pixels(count, side), labels, known, batch)
    return _against(at, epoch, batch, measured, BARE)


def _usual(at: Place, batch: int, measured: dict[str, float]) -> Figures:
    big, small, side, _ = _sizes(at)
    images = pixels(batch * (3 if at.small else 50), side)
    labels = torch.randint(0, 10, (len(images),))
    epoch = usual(at, network(small).network, network(big).network, images, labels, batch, 0 if at.small else 8)
    return _against(at, epoch, batch, measured, USUAL)


def _against(at: Place, epoch: Callable[[], int], batch: int, measured: dict[str, float], target: float) -> Figures:
    """A rival's rate, the median over its epochs after one that warms up, and how many times as fast kd cached is."""
    rates = []
    for _ in range(2 if at.small else 4):
        at.wait()
        began = time.perf_counter()
        count = epoch()
        at.wait()
        rates.append(count / (time.perf_counter() - began))
    rival = statistics.median(rates[1:])
    ours = max((value for name, value in measured.items() if name.startswith(f"kd cached {batch} ")), default=0.0)
    figures = {"images/s": rival, "kd cached / this": ours / rival, "target": target}
    missed = {"verdict": "failed", "note": "below the target"}
    return figures if at.small or ours / rival >= target else {**figures, **missed}


# ---- what a step asks of the device ----------------------------------------------------------------------------------


def kernels(at: Place) -> Iterator[Case]:
    """Kernels a step, the share of the time in which the device computes, and calls that wait for it."""
    batch = _sizes(at)[-1][0]
    for way in WAYS:
        for compile in ("off",) if at.small else ("off", "on"):
            yield f"{way}, batch {batch}, compile={compile}", partial(_profile, at, way, batch, compile)


def _profile(at: Place, way: str, batch: int, compile: str) -> Figures:
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}  # which graphs do not bear
    first, last = (1, 3) if at.small else (25, 45)
    trace = at.folder / "trace.json"
    trace.unlink(missing_ok=True)
    profiler = profile(activities=[ProfilerActivity.CPU if at.small else ProfilerActivity.CUDA])  # both slow the calls
    began = spent = 0.0

    def look(step: int) -> None:
        nonlocal began, spent
        if step == first and not trace.exists():  # not of a later phase
            profiler.start()
            at.wait()
            began = time.perf_counter()
        elif step == last and not trace.exists():
            at.wait()
            spent = time.perf_counter() - began
            profiler.stop()
            profiler.export_chrome_trace(str(trace))

    with after_steps(look):
        _train(at, way, batch, compile, "profiled", 1, last + 5)
    holds(trace.exists(), "no step was profiled")
    return _read(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"], last - first, spent)


def _read(trace: list[dict[str, Any]], steps: int, seconds: float) -> Figures:
    """What the trace of some steps comes to; on a processor its operations alone."""
    spans = [(e.get("cat", ""), e["name"], e["ts"], e["ts"] + e["dur"]) for e in trace if e.get("ph") == "X"]
    work = sorted((start, end) for cat, _, start, end in spans if cat in ("kernel", "gpu_memcpy", "gpu_memset"))
    if not work:
        return {"operations a step": sum(cat == "cpu_op" for cat, *_ in spans) / steps}
    busy, until = 0.0, work[0][0]
    for start, end in work:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    calls = [(name, start) for cat, name, start, _ in spans if cat in ("cuda_runtime", "cuda_driver")]
    launches = [start for name, start in calls if "Launch" in name]
    waits = [start for name, start in calls if "Synchronize" in name and min(launches) < start < max(launches)]
    kernels = sum(cat == "kernel" for cat, *_ in spans)
    counts = {"kernels a step": kernels, "launches a step": len(launches), "waits a step": len(waits)}
    figures = {name: value / steps for name, value in counts.items()}
    return {**figures, "busy": busy / 1e6 / seconds, "ms a step": 1000 * seconds / steps}


# ---- photos ----------------------------------------------------------------------------------------------------------


def photos(at: Place) -> Iterator[Case]:
    """A ResNet-50 at 224² on JPEGs that are decoded as they are needed: images a second, and the share of the time in
    which a step waits for its images."""
    yield "resnet50, streamed", partial(_photos, at)


def _photos(at: Place) -> Figures:
    folder, count, side = at.folder / "photos", 48 if at.small else 2048, 64 if at.small else 400
    for number, image in enumerate(pixels(count, side // 8).numpy()):
        place = folder / ("test" if number // 4 % 6 == 5 else "train") / f"c{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(image).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        photo.save(place / f"{number}.jpg", quality=90)
    settings: dict[str, Any] = {
        "image_size": 32 if at.small else 224,
        "memory_limit": "1KB",
        "augment": "crop=0.35,flip",
    }
    settings |= {"batch_size": 16 if at.small else 128, "epochs": 2 if at.small else 5, "views": "all", "lr": 1e-3}
    student = "zoo:resnet10?width=8" if at.small else "zoo:resnet50"
    done = run(None, student, f"images:{folder}", "none", at.folder / "run", eval_every=settings["epochs"], **settings)
    timing = done.result["timing"]
    waiting = timing["data"] / (timing["data"] + timing["teacher"] + timing["student"])
    return {"images/s": rate(at.folder / "run"), "share that waits for images": waiting, "cores": os.cpu_count()}
