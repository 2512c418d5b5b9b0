"""A network of your own and a folder of photos: a small student takes over the network's role.

    python examples/own_photos.py

Photos lie in one folder a class. Here they are made of handwritten digits, and the teacher is trained on the spot; with
photos and a trained network of your own, `distill` is the only line that you need.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import protege

TINY = "--tiny" in sys.argv
EPOCHS = 1 if TINY else 30
PHOTOS = Path("runs/photos")


def network() -> nn.Module:
    """Any nn.Module, wherever it comes from."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def make_photos() -> None:
    """Stands for the photos that you have."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[: 300 if TINY else None], digits.target, strict=False)):
        folder = PHOTOS / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((15 * pixels).astype("uint8")).resize((32, 32)).convert("RGB").save(folder / f"{number}.png")


def main() -> None:
    make_photos()
    data = f"images:{PHOTOS}"
    # A model is a network with how it wants its pixels: what you would normalise by in a DataLoader is said here.
    teacher = protege.Model(network(), protege.InputSpec(size=(32, 32), mean=(0.3,) * 3, std=(0.3,) * 3))
    protege.train(teacher, data, "runs/teacher", epochs=EPOCHS, overwrite=True)

    result = protege.distill(
        teacher, "zoo:resnet8", data, "kd", "runs/student", samples=100, epochs=2 * EPOCHS, overwrite=True
    )
    print(result.metrics)
    print("The student is in runs/student/student, what happened in runs/student/report.html.")


if __name__ == "__main__":
    main()
