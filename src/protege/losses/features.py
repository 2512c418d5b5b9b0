"""Losses between features of student and teacher, as the methods that this library is compared with have them.

FitNets (Romero et al. 2015, arXiv 1412.6550), attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928) and
the flow of solution procedure, FSP (Yim et al. 2017, "A Gift from Knowledge Distillation"). Feature maps are
``[N, C, H, W]``; where heights and widths differ, the larger map is pooled to the smaller. Stagewise KD has the loss of
FitNets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .rows import in_own_precision


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNets: mean squared error between features of as many channels, maps or ``[N, L, C]`` (section 2.2).

    >>> float(hint_loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 8, 8)))
    1.0
    """
    if student.dim() == 4:
        student, teacher = _same_size(student, teacher, F.adaptive_avg_pool2d)
    return F.mse_loss(student.float(), teacher.float())


def regressor(student: int, teacher: int, maps: bool = True) -> nn.Module:
    """FitNets' regressor (section 2.2), which learns with the student and is thrown away: features of ``student``
    channels → as many as the ``teacher`` has, by a 1×1 layer; maps ``[N, C, H, W]``, or without ``maps`` ``[N, L, C]``.

    >>> regressor(16, 64)(torch.zeros(2, 16, 4, 4)).shape
    torch.Size([2, 64, 4, 4])
    """
    return nn.Conv2d(student, teacher, 1) if maps else nn.Linear(student, teacher)


def attention_map(features: Tensor) -> Tensor:
    """Where features are active: the mean square over channels, scaled to length 1, ``[N, H·W]`` (section 3.1).

    >>> attention_map(torch.ones(1, 5, 2, 2))
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    return F.normalize(features.float().square().mean(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """AT: mean squared error between attention maps; channels may differ. The authors weigh it by 1000 / 2.

    >>> float(attention_loss(torch.ones(2, 8, 4, 4), 3 * torch.ones(2, 64, 8, 8)))
    0.0
    """
    student, teacher = _same_size(student, teacher, F.adaptive_avg_pool2d)
    return F.mse_loss(attention_map(student), attention_map(teacher))


def flow(first: Tensor, second: Tensor) -> Tensor:
    """FSP matrix between two layers of one network, ``[N, C1, C2]``: the mean over pixels of channel products
    (section 3.2). Maps of different sizes are max-pooled, as there.

    >>> flow(torch.ones(1, 2, 4, 4), 3 * torch.ones(1, 1, 2, 2))
    tensor([[[3.],
             [3.]]])
    """
    first, second = _same_size(first.float(), second.float(), F.adaptive_max_pool2d)
    with in_own_precision(first.device):
        return first.flatten(2) @ second.flatten(2).transpose(1, 2) / first[0, 0].numel()


def flow_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """FSP: mean squared error between the flows of two pairs of layers of as many channels, each (where it begins,
    where it ends).

    >>> a, b = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)
    >>> float(flow_loss((a, b), (a, 2 * b)))
    1.0
    """
    return F.mse_loss(flow(*student), flow(*teacher))


def _same_size(a: Tensor, b: Tensor, pool: Callable[[Tensor, tuple[int, int]], Tensor]) -> tuple[Tensor, Tensor]:
    """Both at the smaller height and the smaller width."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return tuple(x if x.shape[2:] == size else pool(x, size) for x in (a, b))  # type: ignore[return-value]
