"""What a network says about each row, read in one pass over samples and kept as a few numbers a row.

A row is an image, a pixel or a token (`Task.rows`). With z the logits ``[K]`` of a row and t its true class, all is
computed from log-probabilities: a teacher whose ``p_t`` rounds to 1 still has a ``1 − p_t`` and an order among the
other classes. Where a row has no label, the class that the network itself prefers stands in for t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Augment, Samples, batches, forward_size
from ..data.labels import UNLABELLED
from ..errors import UserError
from ..numerics import in_any_order
from ..tasks import Task
from ..tasks.probabilities import check_rows
from ..torch_utils import eval_mode

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0)
TOP = (1, 2, 3, 5, 10, 25, 50, 100)
ROWS = 50_000  # rows that are kept of a set
SHOWN = 256  # classes up to which the relations of all are looked at …
MOST = 100  # … and how many of the most frequent where there are more
_CELLS = 2**23  # logits that are worked on at once


@dataclass(frozen=True)
class Rows:
    """Numbers of M rows, on the CPU in float32 (``truth`` and ``choice``, the class preferred, int64; ``labelled`` and
    ``right`` bool).

    ``log_p`` and ``log_rest`` are ``log p_t`` and ``log(1 − p_t)``; ``confidence`` is ``max p``, ``square`` ``Σ p²``;
    ``others`` is the entropy of ``p_j / (1 − p_t)``, j ≠ t, in units of ``log(K − 1)`` (NaN for two classes);
    ``isolation`` is the logit of t above the mean of the other logits, in their standard deviations (NaN below four
    classes), whatever the logits' scale; ``top`` [M, len(TOP)] the mass of the k largest; ``truth_at``,
    ``entropy_at`` and ``confidence_at`` [M, temperatures] the mass on t, the entropy in nats and the largest
    probability of ``p^T``.

    ``shown`` [S] are the classes whose relations were summed: ``log_sums`` [S, S] the sum of ``log p_j`` over the rows
    of class i, ``share_sums`` [S, S] that of ``p_j / (1 − p_i)`` (diagonal 0), and ``counts`` [S] rows of class i.
    """

    classes: int
    temperatures: tuple[float, ...]
    truth: Tensor
    labelled: Tensor
    right: Tensor
    choice: Tensor
    log_p: Tensor
    log_rest: Tensor
    confidence: Tensor
    square: Tensor
    others: Tensor
    isolation: Tensor
    top: Tensor
    truth_at: Tensor
    entropy_at: Tensor
    confidence_at: Tensor
    shown: Tensor
    log_sums: Tensor
    share_sums: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.truth)


def row_numbers(logits: Tensor, truth: Tensor, temperatures: Sequence[float] = TEMPERATURES) -> dict[str, Tensor]:
    """The numbers of `Rows` for logits ``[M, K]`` with classes ``truth [M]``, each [M] or [M, …]."""
    z = logits.float()
    count = z.shape[1]
    whole = z.logsumexp(1)
    at_truth = z.gather(1, truth[:, None])[:, 0]
    masked = z.scatter(1, truth[:, None], -torch.inf)
    rest = masked.logsumexp(1)
    log_p = z - whole[:, None]
    p = log_p.exp()
    numbers = {
        "log_p": at_truth - whole,
        "log_rest": rest - whole,
        "confidence": p.amax(1),
        "square": p.square().sum(1),
        "others": _entropy(masked - rest[:, None]) / torch.tensor(float(max(count - 1, 1))).log(),
        "isolation": _isolation(z, truth, at_truth),
        "top": _top(p),
        "choice": (choice := z.argmax(1)),
        "right": choice == truth,
    }
    mass, entropy, largest = [], [], []
    for temperature in temperatures:
        soft = (z / temperature).log_softmax(1)
        mass.append(soft.gather(1, truth[:, None])[:, 0].exp())
        entropy.append(_entropy(soft))
        largest.append(soft.amax(1).exp())
    for name, columns in (("truth_at", mass), ("entropy_at", entropy), ("confidence_at", largest)):
        numbers[name] = torch.stack(columns, 1)
    return numbers


def _entropy(log_p: Tensor) -> Tensor:
    return -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(1)


def _isolation(z: Tensor, truth: Tensor, at_truth: Tensor) -> Tensor:
    count = z.shape[1] - 1
    if count < 3:
        return torch.full_like(at_truth, torch.nan)
    mean = (z.sum(1) - at_truth) / count
    spread = (z - mean[:, None]).square().scatter(1, truth[:, None], 0.0).sum(1).div(count).sqrt()
    return (at_truth - mean) / spread.clamp(min=1e-9)


def _top(p: Tensor) -> Tensor:
    largest = p.topk(min(max(TOP), p.shape[1]), dim=1).values
    with in_any_order():  # so few numbers in a row are added by one block of a GPU, in their order
        largest = largest.cumsum(1)
    return torch.stack([largest[:, min(k, p.shape[1]) - 1] for k in TOP], 1)


@torch.no_grad()
def read_rows(
    network: nn.Module,
    samples: Samples,
    positions: Tensor,
    task: Task,
    classes: int,
    *,
    view: int,
    augment: Augment,
    who: str = "network",
    temperatures: Sequence[float] = TEMPERATURES,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    workers: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Rows:
    """Read a network, called on raw inputs, on samples at ``positions``, in a view; at most `ROWS` rows are kept.

    The same share of the rows is taken of every batch, at random but the same each time. The network's modes are as
    before afterwards.
    """
    order = list(positions.split(forward_size(samples, 256)))
    quota = -(-ROWS // max(1, len(order)))
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[Tensor]] = {}
    relations: _Relations | None = None
    done = 0
    with eval_mode(network):
        for batch in batches(samples, order, view, augment, workers=workers, device=device):
            with autocast():
                outputs = network(batch.inputs)
            logits, labels, weights = task.rows(outputs, batch.labels)
            logits, labels = logits[weights > 0], labels[weights > 0]
            if not bool(logits.isfinite().all()):
                raise UserError(
                    f"the {who} gives values that are not finite; expected finite outputs: check its weights."
                )
            if not done:
                check_rows(logits, who)
            if len(labels) > quota:
                chosen = torch.randperm(len(labels), generator=generator)[:quota].sort().values.to(labels.device)
                logits, labels = logits[chosen], labels[chosen]
            labelled = labels != UNLABELLED
            truth = torch.where(labelled, labels, logits.argmax(1))
            relations = relations or _Relations(_ranked_by(samples, positions, truth), classes)
            for z, t in zip(*(x.split(max(1, _CELLS // classes)) for x in (logits, truth)), strict=True):
                relations.add(z.float(), t)
                for name, values in row_numbers(z, t, temperatures).items():
                    parts.setdefault(name, []).append(values.cpu())
            parts.setdefault("truth", []).append(truth.cpu())
            parts.setdefault("labelled", []).append(labelled.cpu())
            done += len(batch)
            if report:
                report(done, len(positions))
    assert relations is not None
    joined = {name: torch.cat(values) for name, values in parts.items()}
    return Rows(classes=classes, temperatures=tuple(temperatures), **joined, **relations.sums())


def _ranked_by(samples: Samples, positions: Tensor, truth: Tensor) -> Tensor:
    """Labels that tell how frequent classes are: of all samples, or where these have no label each, of a batch."""
    known = samples.labels[positions] if samples.labels is not None and samples.labels.dim() == 1 else truth
    known = known[known >= 0].to(truth.device)
    return known if len(known) else truth


class _Relations:
    """Sums over the rows of each class, for the classes shown: all, or the most frequent of ``truth``."""

    def __init__(self, truth: Tensor, classes: int) -> None:
        device = truth.device
        if classes <= SHOWN:
            self.shown = torch.arange(classes, device=device)
        else:
            self.shown = truth.bincount(minlength=classes).topk(MOST).indices.sort().values
        self.place = torch.full((classes,), -1, device=device)
        self.place[self.shown] = torch.arange(len(self.shown), device=device)
        self.logs = torch.zeros(len(self.shown), len(self.shown), device=device)
        self.shares = torch.zeros_like(self.logs)
        self.counts = torch.zeros(len(self.shown), device=device)

    def add(self, logits: Tensor, truth: Tensor) -> None:
        place = self.place[truth]
        rows = place >= 0
        logits, place = logits[rows], place[rows]
        self.logs.index_add_(0, place, logits.log_softmax(1)[:, self.shown])
        others = logits.scatter(1, truth[rows][:, None], -torch.inf).softmax(1)[:, self.shown]
        self.shares.index_add_(0, place, others)
        self.counts.index_add_(0, place, torch.ones_like(place, dtype=self.counts.dtype))

    def sums(self) -> dict[str, Tensor]:
        named = {"shown": self.shown, "log_sums": self.logs, "share_sums": self.shares, "counts": self.counts}
        return {name: value.cpu() for name, value in named.items()}
