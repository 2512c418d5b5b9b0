"""Exact widening of a network of your own, in a loop of your own: it learns beside a wider copy of itself.

    python examples/widening.py

The wide network begins as exactly the same function and holds all parameters; the small one is a slice of it that can
be read out at any moment (Guo et al. 2025, "Gap Preserving Distillation", arXiv 2410.04140).
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from protege.losses import gap_loss
from protege.surgery import readout, share

EPOCHS = 1 if "--tiny" in sys.argv else 30


def main() -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)
    train, test = torch.arange(len(labels)).split([1400, len(labels) - 1400])
    small = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )

    both = share(small, 2, images[:2])  # twice the channels, and branches beside each kernel
    with torch.no_grad():
        wide, narrow = both.eval()(images[test])
        expected = small.eval()(images[test])
    print("begins apart from its origin by", float(max((wide - expected).abs().max(), (narrow - expected).abs().max())))

    optimizer = torch.optim.SGD(both.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(EPOCHS):
        both.train()
        for index in train[torch.randperm(len(train))].split(64):
            wide, narrow = both(images[index])
            loss = F.cross_entropy(wide, labels[index]) + F.cross_entropy(narrow, labels[index])
            loss = loss + 3 * gap_loss(narrow, wide, smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(both.parameters(), 5.0)
            optimizer.step()

    student = readout(both).eval()  # an ordinary network of the size that you began with
    with torch.no_grad():
        accuracy = (student(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"{sum(p.numel() for p in student.parameters()):,} parameters, accuracy {float(accuracy):.3f}")


if __name__ == "__main__":
    main()
