"""Language models: the LSTM of Zaremba et al. 2014 (arXiv 1409.2329) and a small GPT (Radford et al. 2019).

Both read tokens and give the logits of each next one. `context` is how many of the first tokens are only read: they get
no logits, which are most of the work, and the LSTM's state after them is cut off from the gradient. The text says how
many; it is no property of the network, so it is set by `check_classes`, on networks of this kind only, and not saved.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..torch_utils import without_autocast
from .vit import Attention, Mlp


class Reader(nn.Module):
    """A network that is told how many of the first tokens are only read, as `context`."""

    def __init__(self) -> None:
        super().__init__()
        self.context = 0


class LSTM(Reader):
    """Tokens [B, context + L] → logits [B, L, num_classes].

    Dropout acts on what goes into each layer and out of the last, never on the recurrence (Zaremba et al., section
    3.1). `tied` shares the embedding with the logit layer (Press & Wolf 2017, arXiv 1608.05859), behind a projection
    where the widths differ. `scale` is the range of the uniform initial weights.
    """

    def __init__(
        self, num_classes: int, embedding: int, hidden: int, layers: int, dropout: float, tied: bool, scale: float
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, embedding)
        self.drop = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0, batch_first=True)
        self.project = nn.Linear(hidden, embedding) if tied and hidden != embedding else nn.Identity()
        self.head = nn.Linear(embedding if tied else hidden, num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -scale, scale)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        # in single precision: processors have no bfloat16 LSTM with a gradient, and the recurrence gains by it
        with without_autocast(tokens.device):
            state = None
            if self.context:
                with torch.no_grad():
                    state = self.lstm(self.drop(self.embed(tokens[:, : self.context])))[1]
            hidden = self.lstm(self.drop(self.embed(tokens[:, self.context :])), state)[0]
        return self.head(self.drop(self.project(hidden)))


class Block(nn.Module):
    """Attention and MLP, each after its norm and beside a shortcut. [B, L, width] → [B, L, width]."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, causal=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(Reader):
    """Tokens [B, context + L], at most `length` of them → logits [B, L, num_classes].

    Pre-norm blocks, learned positions, the embedding shared with the logit layer.
    """

    def __init__(self, num_classes: int, length: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.pos_embed = nn.Parameter(torch.empty(1, length, width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes, bias=False)
        self._initialise(depth)
        self.head.weight = self.embed.weight

    def _initialise(self, depth: int) -> None:
        """GPT-2's: normal of 0.02, smaller in what adds to the shortcut, zero biases."""
        nn.init.normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith(("attn.proj", "mlp.fc2"))
                nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.embed(tokens) + self.pos_embed[:, : tokens.shape[1]])
        return self.head(self.norm(self.blocks(x)[:, self.context :]))


def _lstm(
    default_width: int,
    default_dropout: float,
    scale: float,
    num_classes: int,
    hidden: int | None = None,
    embedding: int | None = None,
    layers: int = 2,
    dropout: float | None = None,
    tied: bool = False,
) -> LSTM:
    hidden = default_width if hidden is None else hidden
    dropout = default_dropout if dropout is None else dropout
    return LSTM(num_classes, embedding or hidden, hidden, layers, dropout, tied, scale)


def _gpt(
    default_width: int,
    default_depth: int,
    default_heads: int,
    num_classes: int,
    length: int = 256,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    dropout: float = 0.0,
) -> GPT:
    width, heads = width or default_width, heads or default_heads
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    return GPT(num_classes, length, width, depth or default_depth, heads, dropout)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "lstm": partial(_lstm, 200, 0.0, 0.1),  # the paper's small one
    "lstm_medium": partial(_lstm, 650, 0.5, 0.05),
    "lstm_large": partial(_lstm, 1500, 0.65, 0.04),
    "gpt_tiny": partial(_gpt, 128, 2, 4),
    "gpt_small": partial(_gpt, 384, 6, 6),
}
