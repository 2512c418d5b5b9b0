"""How fast it is: images a second beside two other loops, what a step asks of the device, and photos from disk."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from rivals import bare, usual
from torch.profiler import ProfilerActivity, profile
from work import Case, Figures, Place, after_steps, holds, in_child, lesson, network, pixels, rate, run

WAYS: dict[str, tuple[str, dict[str, Any], int]] = {  # name → method, its settings, updates in an epoch of 128 images
    "kd cached": ("kd", {"views": 2}, 200),
    "none": ("none", {"views": "all"}, 200),
    "kd online": ("kd", {"views": "all"}, 100),
    "skd stage": ("skd", {"views": 1}, 50),
    "gpd": ("gpd", {"views": "all"}, 50),
}
TEACHER, STUDENT = "resnet56", "resnet20"
EPOCHS = 6
BARE, USUAL = 0.9, 10.0  # targets: at least so much of the bare loop, and so many times the usual way


def _networks(at: Place) -> tuple[str, str]:
    return ("resnet20", "resnet8") if at.small else (TEACHER, STUDENT)


def _train(at: Place, way: str, batch: int, compile: str, out: str, epochs: int = EPOCHS, updates: int = 0) -> None:
    """A run of one of the `WAYS`; in its first phase the numbers are."""
    method, settings, usually = WAYS[way]
    big, small = _networks(at)
    updates = updates or (3 if at.small else usually if batch < 1000 else usually // 4)
    teacher, data = lesson(at, big, updates * batch, 16 if at.small else 32, classes=100 if not at.small else 10)
    settings = {"batch_size": batch, "epochs": epochs, "eval_every": epochs, "lr": 1e-3, "compile": compile, **settings}
    needs = method not in ("none", "gpd")
    run(teacher if needs else None, f"zoo:{small}", data, method, at.folder / out, overwrite=True, **settings)


# ---- compiling what is measured later, meanwhile ---------------------------------------------------------------------


def compiling(at: Place) -> Iterator[Case]:
    """What is compiled is kept on disk by PyTorch: all that will be measured is compiled at the same time, beside the
    checks that measure nothing."""
    yield "all that is measured", partial(_compile_all, at)


def _compile_all(at: Place) -> Figures:
    jobs = [(way, batch) for batch in _batches(at) for way in (WAYS if not at.small else ["none"])]
    began = time.perf_counter()
    threads = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    waits = {}
    for way, batch in jobs:
        waits[way, batch] = in_child(partial(_train, at, way, batch, "on", f"compile {way} {batch}", 1, 12), **threads)
    failed = []
    for name, wait in waits.items():
        try:
            wait()
        except AssertionError as error:
            failed.append(f"{name[0]}, batch {name[1]}: {error}")
    holds(not failed, "; ".join(failed))
    return {"compiled": len(jobs), "seconds of all": time.perf_counter() - began}


def _batches(at: Place) -> tuple[int, ...]:
    return (16,) if at.small else (128, 1024)


# ---- images a second -------------------------------------------------------------------------------------------------


def rates(at: Place) -> Iterator[Case]:
    """Images a second of each method, as it is and compiled and recorded, beside the bare loop and the usual way."""
    measured: dict[str, float] = {}
    for number, batch in enumerate(_batches(at)):
        for way in WAYS:
            for compile in ("off",) if at.small and way != "none" else ("off", "on"):
                yield f"{way}, batch {batch}, compile={compile}", partial(_rate, at, way, batch, compile, measured)
            if way == "kd cached":
                yield f"bare loop, batch {batch}", partial(_bare, at, batch, measured)
                if not number:
                    yield f"usual way, batch {batch}", partial(_usual, at, batch, measured)


def _rate(at: Place, way: str, batch: int, compile: str, measured: dict[str, float]) -> Figures:
    out = f"{way} {batch} {compile}"
    _train(at, way, batch, compile, out)
    measured[out] = rate(at.folder / out)
    return {"images/s": measured[out]}


def _against(at: Place, rival: float, batch: int, measured: dict[str, float], way: str, target: float) -> Figures:
    """The rival's rate, and how many times as fast the faster of our two ways is."""
    best = max((value for name, value in measured.items() if name.startswith(f"{way} {batch} ")), default=0.0)
    figures = {"images/s": rival, f"protege's {way} / this": best / rival, "target": target}
    return figures if at.small else {**figures, "met": best / rival >= target}


def _bare(at: Place, batch: int, measured: dict[str, float]) -> Figures:
    count = batch * (3 if at.small else 100)
    _, data = lesson(at, _networks(at)[0], count, 16 if at.small else 32)
    labels = data.train.labels
    known = torch.randn(count, 10)  # of any values: they cost the same
    epoch = bare(at, network(_networks(at)[1], 10).network, data.train.pixels, labels, known, batch)
    return _against(at, _images_a_second(at, epoch), batch, measured, "kd cached", BARE)


def _usual(at: Place, batch: int, measured: dict[str, float]) -> Figures:
    count, workers = batch * (3 if at.small else 50), 0 if at.small else 8
    teacher, data = lesson(at, _networks(at)[0], count, 16 if at.small else 32)
    student = network(_networks(at)[1], 10).network
    epoch = usual(at, student, teacher.network, data.train.pixels, data.train.labels, batch, workers)
    return _against(at, _images_a_second(at, epoch), batch, measured, "kd cached", USUAL)


def _images_a_second(at: Place, epoch: Any) -> float:
    """The median over three epochs, after one that warms up."""
    found = []
    for number in range(2 if at.small else 4):
        at.wait()
        began = time.perf_counter()
        count = epoch()
        at.wait()
        if number:
            found.append(count / (time.perf_counter() - began))
    return statistics.median(found)


# ---- what a step asks of the device ----------------------------------------------------------------------------------


def kernels(at: Place) -> Iterator[Case]:
    """Kernels a step, the share of the time in which the device computes, and calls that wait for it."""
    batch = _batches(at)[0]
    for way in WAYS:
        for compile in ("off",) if at.small else ("off", "on"):
            yield f"{way}, batch {batch}, compile={compile}", partial(_profile, at, way, batch, compile)


def _profile(at: Place, way: str, batch: int, compile: str) -> Figures:
    first, last = (1, 3) if at.small else (25, 45)
    activities = [ProfilerActivity.CPU if at.small else ProfilerActivity.CUDA]  # to watch both would slow the calls
    # of a process in which graphs are replayed
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    trace, profiler = at.folder / "trace.json", profile(activities=activities)
    trace.unlink(missing_ok=True)
    began = spent = 0.0

    def look(step: int) -> None:
        nonlocal began, spent
        if trace.exists():  # a later phase
            return
        if step == first:
            profiler.start()
            at.wait()
            began = time.perf_counter()
        elif step == last:
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
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in trace:
        if event.get("ph") == "X":
            kinds.setdefault(event.get("cat", ""), []).append(event)
    work = sorted(
        (e["ts"], e["ts"] + e["dur"]) for cat in ("kernel", "gpu_memcpy", "gpu_memset") for e in kinds.get(cat, [])
    )
    if not work:
        return {"operations a step": len(kinds.get("cpu_op", [])) / steps}
    busy, end = 0.0, work[0][0]
    for start, stop in work:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    calls = sorted((e["ts"], e["name"]) for cat in ("cuda_runtime", "cuda_driver") for e in kinds.get(cat, []))
    launches = [ts for ts, name in calls if "Launch" in name]
    waits = [name for ts, name in calls if "Synchronize" in name and launches[0] < ts < launches[-1]]
    return {
        "kernels a step": len(kinds.get("kernel", [])) / steps,
        "launches a step": len(launches) / steps,
        "busy": busy / 1e6 / seconds,
        "waits a step": len(waits) / steps,
        "ms a step": 1000 * seconds / steps,
    }


# ---- photos ----------------------------------------------------------------------------------------------------------


def photos(at: Place) -> Iterator[Case]:
    """A ResNet-50 at 224² on JPEGs that are decoded as they are needed: images a second, and the share of the time in
    which a step waits for its images."""
    yield "resnet50, streamed", partial(_photos, at)


def _photos(at: Place) -> Figures:
    folder, count, side = at.folder / "photos", 48 if at.small else 2048, 64 if at.small else 400
    coarse = pixels(count, side // 8).numpy()
    for split in ("train", "test"):
        for label in range(4):
            (folder / split / f"c{label}").mkdir(parents=True)
    for number, image in enumerate(coarse):
        split = "test" if number // 4 % 6 == 5 else "train"
        photo = Image.fromarray(image).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        photo.save(folder / split / f"c{number % 4}" / f"{number}.jpg", quality=90)
    settings: dict[str, Any] = {
        "image_size": 32 if at.small else 224,
        "memory_limit": "1KB",
        "augment": "crop=0.35,flip",
    }
    settings |= {"batch_size": 16 if at.small else 128, "epochs": 2 if at.small else 5, "views": "all", "lr": 1e-3}
    out = at.folder / "resnet50"
    student = "zoo:resnet10?width=8" if at.small else "zoo:resnet50"
    done = run(None, student, f"images:{folder}", "none", out, eval_every=settings["epochs"], **settings)
    timing = done.result["timing"]
    steps = timing["data"] + timing["teacher"] + timing["student"]
    return {"images/s": rate(out), "share that waits for images": timing["data"] / steps, "cores": os.cpu_count()}
