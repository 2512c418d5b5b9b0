"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) in DeiT's sizes (arXiv 2012.12877).

Names are timm's: `patch_embed.proj`, `cls_token`, `pos_embed`, `blocks`, `norm`, `head`, and one fused `qkv`
a block.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Images [B, channels, H, W] → tokens [B, H·W/patch², width]."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention; `causal` lets a token see those before it and itself. [B, L, width] → same."""

    def __init__(self, width: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each [B, heads, L, width/heads]
        x = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """[B, L, width] → [B, L, width] through a hidden layer of `hidden`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after its norm and beside a shortcut. [B, L, width] → [B, L, width]."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Images [B, channels, image_size, image_size] → logits [B, num_classes], read from the class token."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """DeiT's: truncated normal of 0.02 for linear layers and positions, zero biases."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def _default_patch(image_size: int) -> int:
    """2 up to 16 pixels, 4 up to 32, 8 up to 64, then 16: some 16 to 64 tokens from a small image."""
    return next((patch for limit, patch in ((16, 2), (32, 4), (64, 8)) if image_size <= limit), 16)


def _vit(
    default_width: int,
    default_heads: int,
    num_classes: int,
    channels: int = 3,
    image_size: int = 32,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int = 12,
    heads: int | None = None,
    mlp_ratio: float = 4.0,
) -> VisionTransformer:
    patch_size = patch_size or _default_patch(image_size)
    width, heads = width or default_width, heads or default_heads
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    return VisionTransformer(num_classes, channels, image_size, patch_size, width, depth, heads, mlp_ratio)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "vit_tiny": partial(_vit, 192, 3),
    "vit_small": partial(_vit, 384, 6),
}
