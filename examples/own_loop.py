"""A training loop of your own: a loss of the library, and a teacher that is asked once for each view.

    python examples/own_loop.py

The first epochs ask the teacher; later ones, and later runs with it, read from disk what it said.
"""

import sys

import torch
import torch.nn.functional as F

import protege
from protege.losses import divergence, topk
from protege.signals import TeacherCache, TopK

EPOCHS = 1 if "--tiny" in sys.argv else 20
T = 4.0  # temperature
SHARE = 0.9  # of the loss that comes from the teacher


def main() -> None:
    data = protege.load_data("digits")  # or "images:photos", or any Dataset of (image, label)
    teacher = protege.train("zoo:resnet8", data, "runs/teacher", epochs=EPOCHS, overwrite=True).student
    student = protege.load_model("zoo:mlp?hidden=32", data=data)  # or any network in a protege.Model

    # Of each view the five largest probabilities are kept, and with them the mass of the rest: of a vocabulary of
    # 150,000 words that is all one can keep. Without `signals` it is all logits.
    cache = TeacherCache(teacher, data, views=4, signals=[TopK(5, temperature=T)])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(EPOCHS):
        student.train()
        for batch in cache.loader(64, epoch=epoch):  # shuffled by (seed, epoch); epochs take the views in turn
            logits = student(batch.inputs)  # raw pixels: a Model normalises them itself
            target = topk(batch.teacher.probs, batch.teacher.indices, classes=len(data.classes))
            imitation = T**2 * divergence(logits, target, T).mean()
            loss = SHARE * imitation + (1 - SHARE) * F.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(protege.evaluate(student.eval(), data))


if __name__ == "__main__":
    main()
