"""Initial weights of the zoo, as the ResNet and VGG references have them (He et al., arXiv 1502.01852)."""

from torch import nn


def kaiming(network: nn.Module) -> None:
    """Convolutions: Kaiming normal over the fan out; norms: 1 and 0; linear layers keep torch's default."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
