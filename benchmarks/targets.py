"""Losses of sparse targets against dense ones: time, peak memory, and what a cache stores for them.

    python benchmarks/targets.py                              # 100, 10,000 and 32,000 classes
    python benchmarks/targets.py --rows 8192 --classes 32000  # a batch of tokens, on an accelerator

For each number of classes K: forward and backward of one loss on a batch of rows, the teacher's signals given. "usual"
is the divergence of two log-softmaxes, for topk with the target scattered into K columns. Memory is the most that is
allocated beside the student's logits and the signals, the logits' gradient included; on a processor it is summed from
torch's allocations. The last table is what the cache of signals stores for each row.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from protege.losses import Target, divergence, kd, pt, smoothed, topk, true_probability
from protege.signals import Logits, Signal, SignalCache, TopK
from protege.tasks import TASKS

T = 4.0
MIB = 1 << 20
TASK = TASKS["classification"]


def losses(teacher: Tensor, labels: Tensor, k: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to a loss of student logits, by name; each begins with what a batch brings (logits, or the k largest)."""
    classes = teacher.shape[1]
    said = TopK(k, T).fields(teacher, TASK)
    probs, listed = said["probs"], said["classes"].long()

    def usual(z: Tensor, log_p: Tensor) -> Tensor:
        return F.kl_div((z / T).log_softmax(1), log_p, reduction="batchmean", log_target=True) * T**2

    def usual_topk(z: Tensor) -> Tensor:
        rest = (1 - probs.sum(1, keepdim=True)).clamp(min=1e-9) / (classes - k)
        return usual(z, rest.expand(-1, classes).scatter(1, listed, probs).log())

    def ours(z: Tensor, target: Target, temperature: float = 1.0) -> Tensor:
        return divergence(z, target, temperature).mean() * temperature**2

    return {
        "kd, usual": lambda z: usual(z, (teacher / T).log_softmax(1)),
        "kd": lambda z: ours(z, kd(teacher, T), T),
        "topk, usual": usual_topk,
        "topk": lambda z: ours(z, topk(probs, listed, classes), T),
        "pt": lambda z: ours(z, pt(true_probability(teacher, labels), labels, classes)),
        "ls": lambda z: ours(z, smoothed(labels, 0.1, classes)),
    }


def once(loss: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    z.grad = None
    wait(z)
    start = time.perf_counter()
    loss(z).backward()
    wait(z)
    return time.perf_counter() - start


def wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize()


def peak(loss: Callable[[Tensor], Tensor], z: Tensor) -> int:
    """Most bytes allocated at once in a forward and backward pass, beyond what was there before."""
    z.grad = None
    if z.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        once(loss, z)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss(z).backward()
    taken = most = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        taken += event.nbytes()
        most = max(most, taken)
    return most


def stored(signal: Signal, classes: int) -> int:
    """Bytes for each row in a cache of the signal."""
    with tempfile.TemporaryDirectory() as folder:
        fields = signal.fields(torch.randn(1, classes), TASK)
        cache = SignalCache(Path(folder) / "cache", {}, fields, total=1, used=1, budget=1 << 30).open()
        return cache.view_bytes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--classes", type=int, nargs="+", default=[100, 10_000, 32_000])
    arguments.add_argument("--rows", type=int, default=256)
    arguments.add_argument("--k", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=9)
    given = arguments.parse_args()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{given.rows} rows, k = {given.k}, {given.rounds} rounds, {where}, torch {torch.__version__}")
    for classes in given.classes:
        torch.manual_seed(0)
        z = (torch.randn(given.rows, classes, device=device) * 3).requires_grad_()
        teacher = torch.randn(given.rows, classes, device=device) * 3
        labels = torch.randint(0, classes, (given.rows,), device=device)
        ways = losses(teacher, labels, given.k)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round in range(given.rounds + 1):
            for name, loss in ways.items():
                spent = once(loss, z)
                if round:  # the first warms up
                    seconds[name].append(spent)
        size = z.numel() * z.element_size() / MIB
        print(f"\nK = {classes:,} (logits {size:.1f} MiB)     ms, median (range)      peak MiB")
        for name, loss in ways.items():
            ms = [1e3 * s for s in seconds[name]]
            spread = f"({min(ms):.2f} to {max(ms):.2f})"
            print(f"  {name:12} {statistics.median(ms):16.2f} {spread:>20} {peak(loss, z) / MIB:13.1f}")
        values = {name: loss(z.detach()).item() for name, loss in ways.items()}
        apart = [abs(values[name] / values[f"{name}, usual"] - 1) for name in ("kd", "topk")]
        print(f"  relative difference from usual: kd {apart[0]:.1e}, topk {apart[1]:.1e}")
    print("\ncache bytes for each row")
    for classes in given.classes:
        full, few = stored(Logits(), classes), stored(TopK(given.k, T), classes)
        print(f"  K = {classes:<8,} kd, pt {full:8,}   topk {few:6,}   ls, sim 0   ratio {full / few:.0f}")


if __name__ == "__main__":
    main()
