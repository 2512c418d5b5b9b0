"""A method of your own: it gets options, recipes, studies, resume and reports like those that come with the library.

    python examples/own_method.py
    cd examples && protege distill --method own_method:dist --beta 1 --teacher … --student … --data … --out …

DIST (Huang et al. 2022, "Knowledge Distillation from a Stronger Teacher", arXiv 2205.10536): a student need not match a
teacher's probabilities, only correlate with them, sample by sample and class by class.
"""

import sys

import torch
from pydantic import Field
from torch import Tensor

import protege
from protege.methods import Fit, Logits, Method, MethodSettings, Setup

EPOCHS = 1 if "--tiny" in sys.argv else 20


class Settings(MethodSettings):
    """Each field is an option of the command line, a key of recipes and an argument in Python."""

    beta: float = Field(2.0, ge=0, description="weight of the correlation over the classes of a sample")
    gamma: float = Field(2.0, ge=0, description="weight of the correlation over the samples of a class")
    heat: float = Field(1.0, gt=0, description="temperature of both networks")


def distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - Pearson's correlation of the rows of two tensors [M, K], their mean."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return 1 - torch.cosine_similarity(a, b, dim=1).mean()


def plan(setup: Setup) -> list[Fit]:
    """One phase, in which the whole student learns from labels and from the teacher's logits."""
    s = setup.settings

    def step(student, batch):
        z, labels, weights = setup.rows(student(batch.inputs), batch)
        v = setup.task.flat(batch.signals["teacher"]["logits"], batch.labels)
        q, p = ((x / s.heat).softmax(1) for x in (z, v))
        inter, intra = distance(q, p), distance(q.T, p.T)
        loss = setup.task_loss(z, labels, weights) + s.heat**2 * (s.beta * inter + s.gamma * intra)
        return {"loss": loss, "inter": inter, "intra": intra}  # all of them are in the log and the report

    return [Fit("dist", setup.student, step, setup.asked(Logits()))]


dist = Method(plan, Settings)

if __name__ == "__main__":
    teacher = protege.train("zoo:resnet8", "digits", "runs/teacher", epochs=EPOCHS, overwrite=True).student
    options = {"samples": 200, "epochs": EPOCHS, "overwrite": True}
    print(protege.distill(teacher, "zoo:mlp?hidden=32", "digits", dist, "runs/dist", **options).metrics)
