"""Very small networks, for tiny images such as digits and for first tries."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .resnet import kaiming


class SmallCNN(nn.Module):
    """3×3 convolutions, each with norm and ReLU; all but the first halve the map and double the width; global average;
    `fc`. Images [B, channels, H, W] → logits [B, num_classes]."""

    def __init__(
        self, default_width: int, convolutions: int, num_classes: int, channels: int = 3, width: int | None = None
    ) -> None:
        super().__init__()
        self.stages = tuple(f"layer{number + 1}" for number in range(convolutions))
        for number, name in enumerate(self.stages):
            outputs = (default_width if width is None else width) * 2**number
            convolution = nn.Conv2d(channels, outputs, 3, stride=2 if number else 1, padding=1, bias=False)
            self.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
            channels = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


class MLP(nn.Module):
    """Square images of `image_size` pixels → `depth` hidden layers → logits [B, num_classes]; depth 0 is linear."""

    def __init__(
        self, num_classes: int, channels: int = 3, image_size: int = 32, hidden: int = 64, depth: int = 1
    ) -> None:
        super().__init__()
        layers, inputs = list[nn.Module](), channels * image_size**2
        for _ in range(depth):
            layers += [nn.Linear(inputs, hidden), nn.ReLU()]
            inputs = hidden
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x.flatten(1)))


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "cnn_tiny": partial(SmallCNN, 8, 2),
    "cnn_small": partial(SmallCNN, 32, 3),
    "mlp": MLP,
}
