"""Fifty photos without labels: a network is made smaller, and a least-squares solution gives back what that took.

    python examples/few_photos.py

Nothing is trained by gradient descent, so it takes seconds (Li et al. 2020, "Few Sample Knowledge Distillation",
arXiv 1812.01839).
"""

import sys

import protege

EPOCHS = 2 if "--tiny" in sys.argv else 30


def main() -> None:
    data = "digits"  # or "images:photos", with or without a folder for each class
    teacher = protege.train("zoo:resnet8", data, "runs/teacher", epochs=EPOCHS, overwrite=True).student
    small = protege.shrink(teacher, how="l1", ratio=0.4, out="runs/shrunk", overwrite=True)
    print("cut:   ", protege.evaluate(small, data)["accuracy"])
    result = protege.distill(
        teacher, "runs/shrunk", data, "fskd", "runs/solved", solve="kernel", samples=50, overwrite=True
    )
    print("solved:", result.metrics["accuracy"], "teacher:", protege.evaluate(teacher, data)["accuracy"])


if __name__ == "__main__":
    main()
