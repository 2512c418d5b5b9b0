"""U-Nets (Ronneberger et al. 2015, arXiv 1505.04597) on residual encoders, for segmentation.

The networks of Stagewise KD's segmentation experiments (arXiv 1911.06786): the encoder is a four-stage residual
network with the stem for large images, and a decoder stage doubles the map, takes in the encoder's map of that size
and convolves twice. The last doubling takes in the image itself, so that outlines are as sharp as the input.

In order: `stem` (half the size), `layer1` (a quarter, after the pooling), `layer2`, `layer3`, `layer4` (1/32),
`decoder1` (1/16), `decoder2`, `decoder3`, `decoder4` (half the size), `head`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import BasicBlock, ResNet, kaiming


class Decoder(nn.Module):
    """Enlarge to the size of `skip`, put it beside, convolve twice.

    [B, inputs, h, w] and skip [B, extra, H, W] → [B, outputs, H, W].
    """

    def __init__(self, inputs: int, extra: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs + extra, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([enlarged(x, skip), skip], 1)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class Head(nn.Module):
    """Enlarge to the size of the image, put it beside, one convolution, and one to the classes' logits."""

    def __init__(self, inputs: int, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs + channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = torch.cat([enlarged(x, image), image], 1)
        return self.conv2(self.relu(self.bn1(self.conv1(x))))


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Each value repeated up to the size of another map; sizes need not be multiples of each other."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


class UNet(nn.Module):
    """Images [B, channels, H, W] of any size → logits [B, num_classes, H, W].

    `blocks`: basic blocks in each of the encoder's four stages, whose widths are 1, 2, 4 and 8 times `width`.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, channels: int = 3, width: int = 64) -> None:
        if width < 1:
            raise ValueError(f"width {width} should be at least 1")
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width)
        encoder = ResNet(BasicBlock, blocks, widths, width, False, 1, channels)
        self.stem = nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu)
        self.pool = encoder.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(encoder, name) for name in encoder.stages)
        half, quarter = max(1, width // 2), max(1, width // 4)
        self.decoder1 = Decoder(8 * width, 4 * width, 4 * width)
        self.decoder2 = Decoder(4 * width, 2 * width, 2 * width)
        self.decoder3 = Decoder(2 * width, width, width)
        self.decoder4 = Decoder(width, width, half)
        self.head = Head(half, channels, quarter, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.layer1(self.pool(first))
        third = self.layer2(second)
        fourth = self.layer3(third)
        y = self.decoder1(self.layer4(fourth), fourth)
        y = self.decoder2(y, third)
        y = self.decoder3(y, second)
        y = self.decoder4(y, first)
        return self.head(y, x)


unet = UNet  # under which folders of version 0.1 may name it
FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "unet10": partial(UNet, (1, 1, 1, 1)),
    "unet14": partial(UNet, (2, 2, 1, 1)),
    "unet18": partial(UNet, (2, 2, 2, 2)),
    "unet26": partial(UNet, (3, 3, 3, 3)),
    "unet34": partial(UNet, (3, 4, 6, 3)),
}
