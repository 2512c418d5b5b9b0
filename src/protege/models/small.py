"""Very small networks, for tiny images such as digits and for first tries."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .resnet import kaiming


class SmallCNN(nn.Module):
    """3×3 convolutions, each with norm and ReLU; all but the first halve the map; global average; `fc`.

    Images [B, channels, H, W] → logits [B, num_classes]. `widths` has one entry a convolution.
    """

    def __init__(self, num_classes: int, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = tuple(f"layer{number + 1}" for number in range(len(widths)))
        for name, width in zip(self.stages, widths, strict=True):
            stride = 1 if name == "layer1" else 2
            convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            self.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


class MLP(nn.Module):
    """Images [B, C, H, W] of `inputs` values each → `depth` hidden layers → logits [B, num_classes]."""

    def __init__(self, num_classes: int, inputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(inputs, hidden), nn.ReLU()]
            inputs = hidden
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x.flatten(1)))


def _cnn(
    default_width: int, convolutions: int, num_classes: int, channels: int = 3, width: int | None = None
) -> SmallCNN:
    width = default_width if width is None else width
    return SmallCNN(num_classes, channels, tuple(width * 2**number for number in range(convolutions)))


def mlp(num_classes: int, channels: int = 3, image_size: int = 32, hidden: int = 64, depth: int = 1) -> MLP:
    """A multilayer perceptron on square images of `image_size` pixels; depth 0 is a linear classifier."""
    return MLP(num_classes, channels * image_size**2, hidden, depth)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "cnn_tiny": partial(_cnn, 8, 2),
    "cnn_small": partial(_cnn, 32, 3),
    "mlp": mlp,
}
