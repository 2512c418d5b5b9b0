"""Whose vote decides which of tied channels go: accuracy on digits right after cutting, nothing trained after.

    python studies/pruning_votes.py            # two minutes

*layers*: the mean of all layers that write the channels, each in units of its average filter (what `shrink` does).
*first*: the first layer's filters alone, as Li et al. have it (torch-pruning's p=1, no normaliser, "first"). *mean*:
the layers' filters without units ("mean"). *everything*: torch-pruning's default, the squares of filters, of what
reads them and of BatchNorm scales. Mean and half the range of three seeds, 2026-11-30, two shared cores:

    network                 whole      cut   layers      first       mean        everything
    resnet20                0.98±0.01  10 %  0.58±0.22   0.48±0.08   0.51±0.19   0.76±0.08
                                       20 %  0.26±0.06   0.24±0.06   0.32±0.19   0.43±0.15
                                       30 %  0.10±0.01   0.13±0.03   0.13±0.02   0.21±0.12
    resnet18?width=16       0.98±0.01  10 %  0.46±0.10   0.43±0.11   0.62±0.04   0.75±0.05
                                       20 %  0.19±0.07   0.15±0.03   0.25±0.07   0.33±0.06
                                       30 %  0.13±0.02   0.11±0.01   0.17±0.03   0.14±0.03
    mobilenetv2?width=0.5   0.70±0.15  10 %  0.28±0.11   0.17±0.02   0.25±0.08   0.32±0.16
                                       20 %  0.13±0.04   0.10±0.00   0.14±0.04   0.18±0.08
                                       30 %  0.10±0.00   0.10±0.00   0.12±0.04   0.14±0.03
"""

from __future__ import annotations

from unittest.mock import patch

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from protege import load_model
from protege.surgery import shrink
from protege.surgery.layers import LAYERS
from protege.surgery.pruning import groups

NETWORKS = ("resnet20", "resnet18?width=16", "mobilenetv2?width=0.5")
VOTES = ("layers", "first", "mean", "everything")


def scores(vote, ranks, sites, roots):
    """In the place of `groups._Ranks.scores`: the importance of each unit."""
    votes = []
    for site, wires in sites.items():
        module, power = ranks.modules.get(site.name), 2 if vote == "everything" else 1
        if isinstance(module, LAYERS) and (
            site.side in ("out", "both") or (site.side == "in" and vote == "everything")
        ):
            if site.side == "in" and getattr(module, "groups", 1) > 1:
                continue
            weight = module.weight.detach().double().transpose(0, int(site.side == "in"))
            values = weight.abs().pow(power).flatten(1).sum(1)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and vote == "everything":
            values = module.weight.detach().double().pow(power)
        else:
            continue
        channels, units = (torch.tensor(part) for part in zip(*wires, strict=True))
        total = torch.zeros(max(roots) + 1, dtype=torch.float64).index_add_(0, units, values[channels])
        votes.append(total[list(roots)])
    return torch.stack(votes[:1] if vote == "first" else votes).mean(0) if votes else None


def trained(spec: str, seed: int, images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    network = load_model(f"zoo:{spec}", num_classes=10).network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = 12 * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for step in range(steps):
        if step % (len(images) // 64) == 0:
            batches = iter(torch.randperm(len(images)).split(64))
        batch = next(batches)
        x = torch.roll(images[batch], torch.randint(-1, 2, (2,)).tolist(), (2, 3))
        optimizer.zero_grad()
        F.cross_entropy(network(x), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((network.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1).repeat(1, 3, 1, 1) / 8 - 1
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    ours = groups._Ranks.scores
    for spec in NETWORKS:
        networks = [trained(spec, seed, images[train], labels[train]) for seed in range(3)]
        whole = torch.tensor([accuracy(network, images[test], labels[test]) for network in networks])
        print(f"{spec:24s}{whole.mean():.2f}±{(whole.max() - whole.min()) / 2:.2f}")
        for ratio in (0.1, 0.2, 0.3):
            line = f"{ratio:39.0%}"
            for vote in VOTES:
                by = ours if vote == "layers" else lambda *given, vote=vote: scores(vote, *given)
                with patch.object(groups._Ranks, "scores", by):
                    cut = [shrink(network, images[:2], ratio=ratio).network for network in networks]
                left = torch.tensor([accuracy(network, images[test], labels[test]) for network in cut])
                line += f"  {left.mean():.2f}±{(left.max() - left.min()) / 2:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
