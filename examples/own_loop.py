"""A training loop of one's own: a loss of the library, and a teacher that is asked once for each view.

    python examples/own_loop.py

The first epochs pay for the teacher; those after them read what it said from disk, also in the next run of this file.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

import protege
from protege.losses import divergence, topk
from protege.signals import TeacherCache, TopK

EPOCHS = 1 if "--tiny" in sys.argv else 30
T = 4.0  # temperature


def main() -> None:
    data = protege.load_data("digits")  # or "images:photos", or any Dataset of (image, label)
    teacher = trained(protege.load_model("zoo:resnet8", data=data), data)
    student = protege.load_model("zoo:mlp?hidden=32", data=data)

    # Of each view the teacher's ten largest probabilities are kept: as much as a loss needs of a large vocabulary.
    cache = TeacherCache(teacher, data, views=4, signals=[TopK(10, temperature=T)])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(EPOCHS):
        for batch in cache.loader(64, epoch=epoch):  # shuffled by (seed, epoch); epochs go through the views in turn
            logits = student(batch.inputs)  # raw pixels: a Model normalises for itself
            target = topk(batch.teacher.probs, batch.teacher.indices, classes=len(data.classes))
            imitation = T**2 * divergence(logits, target, T).mean()
            loss = 0.9 * imitation + 0.1 * F.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print("student:", protege.evaluate(student.eval(), data))


def trained(model: nn.Module, data: protege.data.Data) -> nn.Module:
    """Stands for the teacher that you have."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(data.train)).split(64):
            batch = data.train.fetch(index, protege.data.CLEAN, data.augment)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.inputs), batch.labels).backward()
            optimizer.step()
    print("teacher:", protege.evaluate(model.eval(), data))
    return model


if __name__ == "__main__":
    main()
