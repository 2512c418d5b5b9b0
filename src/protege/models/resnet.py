"""Residual networks (He et al. 2016, arXiv 1512.03385), for small images and for large ones.

Two families from one class, with torchvision's names, so that its ImageNet weights fit:

- three stages (section 4.2; projection shortcuts and the widths of the CRD benchmark, Tian et al. 2020,
  arXiv 1910.10699): resnet8/20/32/44/56/110, and resnet8x4, resnet32x4, four times as wide with a stem of 32;
- four stages: resnet10/14/18/26/34 of basic blocks, the students and the teacher of Stagewise KD (arXiv
  1911.06786), and resnet50 of bottlenecks, with a stem for ImageNet or one for small images (3×3, stride 1,
  no pooling).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

SMALL_IMAGE = 64  # pixels; up to here a stem that shrinks images fourfold would leave too little


def kaiming(network: nn.Module) -> None:
    """Initial weights of ResNet and VGG (He et al. 2015, arXiv 1502.01852): of convolutions normal over the fan out, of
    norms 1 and 0; linear layers keep torch's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut. [B, inputs, H, W] → [B, planes, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride), 1×1, beside a shortcut. [B, inputs, H, W] → [B, 4·planes, …]."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


class ResNet(nn.Module):
    """Stem, stages `layer1`…, global average, `fc`. Images [B, channels, H, W] → logits [B, num_classes].

    `blocks` and `widths` have one entry a stage; every stage after the first halves the map.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        stem_width: int,
        small_stem: bool,
        num_classes: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, stem_width, 3) if small_stem else _conv(channels, stem_width, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = stem_width
        self.stages = tuple(f"layer{number + 1}" for number in range(len(blocks)))
        for name, count, width in zip(self.stages, blocks, widths, strict=True):
            stride = 1 if name == "layer1" else 2
            self.add_module(name, _stage(block, inputs, width, count, stride))
            inputs = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    layers = [block(inputs, width, stride, downsample)]
    layers += [block(outputs, width, 1, None) for _ in range(count - 1)]
    return nn.Sequential(*layers)


def _cifar(count: int, widths: tuple[int, int, int], stem_width: int, num_classes: int, channels: int = 3) -> ResNet:
    """Three stages of `count` basic blocks each."""
    return ResNet(BasicBlock, (count,) * 3, widths, stem_width, True, num_classes, channels)


def _imagenet(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, int, int, int],
    num_classes: int,
    channels: int = 3,
    image_size: int = 32,
    stem: str = "auto",
    width: int = 64,
) -> ResNet:
    """Four stages. Without a `stem` images of up to 64 pixels get the small one."""
    if stem not in ("auto", "small", "imagenet"):
        raise ValueError(f"stem {stem!r} is not known, use 'small' or 'imagenet'")
    if width < 1:
        raise ValueError(f"width {width} should be at least 1")
    small = image_size <= SMALL_IMAGE if stem == "auto" else stem == "small"
    return ResNet(block, blocks, (width, 2 * width, 4 * width, 8 * width), width, small, num_classes, channels)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(_cifar, 1, (16, 32, 64), 16),
    "resnet20": partial(_cifar, 3, (16, 32, 64), 16),
    "resnet32": partial(_cifar, 5, (16, 32, 64), 16),
    "resnet44": partial(_cifar, 7, (16, 32, 64), 16),
    "resnet56": partial(_cifar, 9, (16, 32, 64), 16),
    "resnet110": partial(_cifar, 18, (16, 32, 64), 16),
    "resnet8x4": partial(_cifar, 1, (64, 128, 256), 32),
    "resnet32x4": partial(_cifar, 5, (64, 128, 256), 32),
    "resnet10": partial(_imagenet, BasicBlock, (1, 1, 1, 1)),
    "resnet14": partial(_imagenet, BasicBlock, (2, 2, 1, 1)),
    "resnet18": partial(_imagenet, BasicBlock, (2, 2, 2, 2)),
    "resnet26": partial(_imagenet, BasicBlock, (3, 3, 3, 3)),
    "resnet34": partial(_imagenet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(_imagenet, Bottleneck, (3, 4, 6, 3)),
}
