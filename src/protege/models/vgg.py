"""VGG (Simonyan & Zisserman 2015, arXiv 1409.1556) with the head for small images.

One linear layer after a global average replaces the three large ones, as in the few-sample and pruning
literature (Li et al. 2017, arXiv 1608.08710). vgg8 is the CRD benchmark's (arXiv 1910.10699). Names are
torchvision's: `features`, `avgpool`, `classifier`.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .resnet import kaiming

LAYOUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg8": ((64,), (128,), (256,), (512,), (512,)),
    "vgg11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """Plain stack of 3×3 convolutions. Images [B, channels, H, W] → logits [B, num_classes].

    A max pooling follows each of the first `pools` blocks: by default as many, up to five, as leave a map of
    at least 2×2, so four at 32 pixels.
    """

    def __init__(
        self,
        layout: tuple[tuple[int, ...], ...],
        batch_norm: bool,
        pools: int,
        num_classes: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, block in enumerate(layout):
            for width in block:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            if number < pools:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _build(
    name: str,
    batch_norm: bool,
    num_classes: int,
    channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
) -> VGG:
    """`width` multiplies every layer's channels."""
    if not width > 0:
        raise ValueError(f"width {width} should be above 0")
    layout = tuple(tuple(max(1, round(planes * width)) for planes in block) for block in LAYOUTS[name])
    pools = max(0, min(5, int(math.log2(image_size)) - 1))
    return VGG(layout, batch_norm, pools, num_classes, channels)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    name + suffix: partial(_build, name, suffix == "_bn") for name in LAYOUTS for suffix in ("", "_bn")
}
