"""Laws of widening on what real networks do with channels beside layers: one head, shuffles, biases put together …"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protege.errors import UserError
from protege.surgery.widening.search import Search
from protege.surgery.widening.shared import readout, share

WIDTH, CLASSES = 8, 5


class OneHead(nn.Module):
    """Attention of PVT and SegFormer: one head, keys and values in one layer."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.q, self.kv, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, 1, -1).permute(0, 2, 1, 3)
        if self.joined:
            k, v = self.kv(x).reshape(b, -1, 2, 1, c).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            k, v = (part.view(b, n, 1, WIDTH).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class PutTogether(nn.Module):
    """BEiT's attention: a bias of three parts, of which one is a buffer of zeros."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Remembering(nn.Module):
    """LeViT's attention: in eval mode it remembers the biases that it looked up, until it is trained again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.biases, self.remembered = nn.Parameter(torch.randn(2, 16)), {}
        self.register_buffer("places", torch.arange(16).view(16, 1) ^ torch.arange(16), persistent=False)

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.remembered = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 2, -1).split([4, 4, 4], dim=3)
        if not self.training:
            self.remembered.setdefault("biases", self.biases[:, self.places])
        biases = self.biases[:, self.places] if self.training else self.remembered["biases"]
        scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) + biases
        return self.proj((scores.softmax(-1) @ v.permute(0, 2, 1, 3)).transpose(1, 2).reshape(b, n, c))


class Linear(nn.Module):
    """MobileViT v2's attention: one channel of scores for all channels of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 1 + 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split([1, WIDTH, WIDTH], dim=2)
        context = (key * query.softmax(1)).sum(1, keepdim=True)
        return self.proj(value.relu() * context.expand_as(value))


class Headless(nn.Module):
    """MANet's attention, and one that scales by the number of channels: sums over channels."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.q, self.k = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2) if self.scaled else q.matmul(k.transpose(1, 2))
        return x + scores.softmax(-1) @ x / x.shape[-1]


class Unit(nn.Module):
    """ShuffleNet v2's unit: half of the channels go through, then both halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.branch = nn.Sequential(nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU())
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, self.depthwise(self.branch(right))), dim=1)
        b, c, h, w = x.size()
        return torch.transpose(x.view(b, 2, c // 2, h, w), 1, 2).contiguous().view(b, c, h, w)


class Split(nn.Module):
    """ResNeSt's split attention of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, groups=2)
        self.squeeze, self.excite = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(4, 2 * WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = self.conv(x).reshape(b, 2, WIDTH, h, w)
        gates = self.excite(self.squeeze(x.sum(1).mean((2, 3), keepdim=True)).relu())
        gates = gates.view(b, 1, 2, -1).transpose(1, 2).softmax(1).reshape(b, 2, WIDTH, 1, 1)
        return (x * gates).sum(1)


class Local(nn.Module):
    """ECA: a convolution over the channels of a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return x * y.view(x.shape[0], -1, 1, 1).expand_as(x)


class Standardised(nn.Conv2d):
    """NFNet's convolution: its weight is standardised, and scaled by a gain."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, weight=self.gain.view(-1), training=True, momentum=0.0)
        return F.conv2d(
            x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Products(nn.Module):
    """Weights that the code multiplies with itself, its arguments by position and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(WIDTH, 16)), nn.Parameter(torch.randn(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.mm(x.flatten(0, 1), mat2=self.up).relu()
        return torch.matmul(rows, other=self.down).view(*x.shape[:2], -1)


class OneByOne(nn.Module):
    """A convolution of images without a dimension for samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.conv(image) for image in x])


class Images(nn.Module):
    def __init__(self, *layers: nn.Module, tokens: bool = False) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 4, 4), nn.BatchNorm2d(WIDTH)
        self.layers, self.tokens, self.head = nn.Sequential(*layers), tokens, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        if self.tokens:
            x = x.flatten(2).transpose(1, 2)
            return self.head((x + self.layers(x)).mean(1))
        return self.head(self.layers(x).relu().mean((2, 3)))


NETWORKS = {
    "one_head": lambda: Images(OneHead(joined=True), tokens=True),
    "one_head_apart": lambda: Images(OneHead(joined=False), OneHead(joined=False), tokens=True),
    "biases_together": lambda: Images(PutTogether(), tokens=True),
    "biases_remembered": lambda: Images(Remembering(), tokens=True),
    "one_for_all": lambda: Images(Linear(), tokens=True),
    "headless": lambda: Images(Headless(scaled=False), tokens=True),
    "headless_scaled": lambda: Images(Headless(scaled=True), tokens=True),
    "units": lambda: Images(Unit(), Unit(), Unit(), Unit()),
    "split_attention": lambda: Images(Split()),
    "over_channels": lambda: Images(Local(), nn.Conv2d(WIDTH, WIDTH, 1)),
    "products": lambda: Images(Products(), tokens=True),
    "one_by_one": lambda: Images(OneByOne(), nn.Conv2d(6, WIDTH, 1)),
    "standardised": lambda: Images(
        Standardised(WIDTH, WIDTH, 3, padding=1), Standardised(WIDTH, WIDTH, 3, groups=2), Standardised(WIDTH, WIDTH, 1)
    ),
}


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ratio", [2, 3])
def test_both_are_the_student_before_and_the_readout_is_it_after(name, ratio):
    torch.manual_seed(0)
    student, x = NETWORKS[name]().eval(), torch.randn(3, 3, 16, 16)
    expected = student(x)
    shared = share(student, ratio, x)
    for output in (*shared(x), readout(shared)(x)):
        assert apart(output, expected) < 1e-4
    assert sum(p.numel() for p in shared.wide.parameters()) > 1.5 * sum(p.numel() for p in student.parameters())
    shared.train()
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.02)
    for _ in range(2):
        optimizer.zero_grad()
        sum(F.cross_entropy(output, torch.arange(3)) for output in shared(x)).backward()
        assert all(p.grad is not None for p in shared.parameters())
        optimizer.step()
    _, narrow = shared.eval()(x)
    assert apart(narrow, expected) > 1e-3
    assert apart(readout(shared)(x), narrow) < 1e-4
    assert apart(readout(shared).train().eval()(x), narrow) < 1e-4  # with nothing remembered of former weights
    assert apart(student(x), expected) == 0


def test_a_failure_goes_back_to_the_latest_choice_to_blame():
    search = Search()
    for choice in "abc":
        search.take(choice, 1)
    assert search.advance("end", ["a", "c"], "first")  # c is refused; a is to blame too, if c has no other way
    assert search.is_refused("c", 1)
    assert not search.is_refused("a", 1)
    assert search.advance("c", [], "second")
    assert search.is_refused("a", 1)
    assert not search.is_refused("c", 1)  # open again
    assert "b" not in search.taken
    assert search.blame("a") == "first"
    assert not search.advance("a", [], "third")


def test_norms_of_weights_are_named():
    student = Images(nn.utils.parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 3))).eval()
    with pytest.raises(UserError, match=r"module 'layers\.0.*calls _?\w*norm\w* in a way that cannot be widened"):
        share(student, 2, torch.randn(2, 3, 16, 16))
