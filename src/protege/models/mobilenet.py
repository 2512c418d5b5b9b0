"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2), with torchvision's names and numbers.

For small images the first two of the five halvings are left out, as is usual on CIFAR.
"""

from collections.abc import Callable

from torch import Tensor, nn

from .resnet import SMALL_IMAGE, kaiming

# expansion, channels, blocks, stride of the first block
LAYOUT = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, linear 1×1 projection. [B, inputs, H, W] → [B, outputs, …]."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu(inputs, hidden, 1)]
        layers += [
            _conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """Images [B, channels, H, W] → logits [B, num_classes]. `width` multiplies every layer's channels."""

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        width: float = 1.0,
        small: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inputs = _rounded(32 * width)
        layers: list[nn.Module] = [_conv_bn_relu(channels, inputs, 3, 1 if small else 2)]
        for number, (expansion, planes, blocks, stride) in enumerate(LAYOUT):
            outputs = _rounded(planes * width)
            for block in range(blocks):
                first = 1 if block > 0 or (small and number == 1) else stride
                layers.append(InvertedResidual(inputs, outputs, first, expansion))
                inputs = outputs
        last = _rounded(1280 * max(1.0, width))
        layers.append(_conv_bn_relu(inputs, last, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _rounded(channels: float) -> int:
    """To a multiple of 8, never losing more than a tenth (the authors' `make_divisible`)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def mobilenetv2(
    num_classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0, dropout: float = 0.0
) -> MobileNetV2:
    """MobileNetV2; images of up to 64 pixels get the small strides."""
    if not width > 0:
        raise ValueError(f"width {width} should be above 0")
    return MobileNetV2(num_classes, channels, width, image_size <= SMALL_IMAGE, dropout)


FACTORIES: dict[str, Callable[..., nn.Module]] = {"mobilenetv2": mobilenetv2}
