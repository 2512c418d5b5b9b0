"""Laws of widening and of reading the student out of the wide network, on networks of many kinds."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from protege.errors import UserError
from protege.models import zoo
from protege.surgery import decouple, shrink, widen
from protege.surgery.widening.shared import BRANCHES, Shared, _shapes, readout, share

CLASSES = 5


class Dense(nn.Module):
    """Concatenation, of hidden channels and of the image itself, and a flatten with its size written out."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, growth, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(3 + growth)
        self.conv2 = nn.Conv2d(3 + growth, growth, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3 + 2 * growth)
        self.transition = nn.Conv2d(3 + 2 * growth, 6, 1)
        self.fc = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.conv1(x)], 1)
        x = torch.cat([self.conv2(F.relu(self.bn1(x))), x], 1)
        x = F.adaptive_avg_pool2d(self.transition(F.relu(self.bn2(x))), 4)
        return self.fc(x.view(-1, 96))


class Excited(nn.Module):
    """Squeeze-and-excite, a spatial gate of one channel, grouped convolution, GroupNorm, a layer scale."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Linear(width, 2), nn.Linear(2, width)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)
        self.grouped, self.norm = nn.Conv2d(width, 12, 3, groups=4), nn.GroupNorm(4, 12)
        self.scale = nn.Parameter(torch.rand(12, 1, 1))
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu()
        weight = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        x = x * weight.view(x.size(0), x.size(1), 1, 1).expand_as(x)
        x = x * self.gate(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid()
        return self.fc(F.hardswish(self.norm(self.grouped(x)) * self.scale).flatten(2).mean(-1))


class UNet(nn.Module):
    """Skips by concatenation, interpolation, a transposed convolution, outputs for every pixel."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.middle, self.up2 = nn.Conv2d(2 * width, 6, 3, padding=1), nn.Conv2d(2 * width + 6, 6, 3, padding=1)
        self.grow = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.up1, self.bn = nn.Conv2d(width + 6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x).relu()
        second = self.down2(F.max_pool2d(first, 2)).relu()
        low = F.interpolate(self.middle(F.max_pool2d(second, 2)), scale_factor=2, mode="bilinear")
        low = self.grow(self.up2(torch.cat([low, second], 1)).relu())
        top = self.bn(self.up1(torch.cat([low, first], 1))).relu()
        return F.interpolate(self.head(top), size=x.shape[2:], mode="nearest")


class Shuffle(nn.Module):
    """Channel shuffles between grouped and depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped1, self.depthwise1 = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise2, self.grouped2 = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(8, 16, 1, groups=2)
        self.fc = nn.Linear(16, CLASSES)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise1(self.shuffle(self.grouped1(self.conv(x).relu()), 2))
        left, right = x.chunk(2, 1)
        x = self.shuffle(torch.cat([left, self.depthwise2(right)], 1), 2)
        return self.fc(self.grouped2(x).relu().amax((2, 3)))


class Attention(nn.Module):
    """Self-attention as it is written in the wild."""

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__()
        self.width, self.heads, self.kind = width, heads, kind
        if kind == "module":
            self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        elif kind in ("fused", "chunk", "causal"):
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        h, size = self.heads, self.width // self.heads
        if self.kind == "module":
            return self.proj(self.attend(x, x, x, need_weights=False)[0])
        if self.kind == "fused":
            q, k, v = self.qkv(x).reshape(b, n, 3, h, c // h).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.kind == "chunk":
            q, k, v = (part.unflatten(-1, (h, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        elif self.kind == "causal":
            q, k, v = (part.view(b, n, h, size).transpose(1, 2) for part in self.qkv(x).split(self.width, dim=2))
        elif self.kind == "split":
            q, k, v = (m(x).view(b, n, h, -1).transpose(1, 2) for m in (self.query, self.key, self.value))
        else:  # heads folded into the batch
            q, k, v = (
                m(x).view(b, n, h, c // h).transpose(1, 2).reshape(b * h, n, -1)
                for m in (self.query, self.key, self.value)
            )
            x = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * size**-0.5).softmax(-1), v)
            return self.proj(x.view(b, h, n, -1).transpose(1, 2).reshape(b, n, self.width))
        if self.kind == "chunk":
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        if self.kind == "causal":
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(b, n, c))


class Transformer(nn.Module):
    """Images or tokens through two blocks; class token, positions and layer scale for images; tied head for tokens."""

    def __init__(self, kind: str, width: int = 12, heads: int = 3, words: int = 0, tied: bool = False) -> None:
        super().__init__()
        self.words = words
        if words:
            self.embed, self.positions = nn.Embedding(words, width), nn.Embedding(16, width)
        else:
            self.patches, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
            self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.attention = nn.ModuleList(Attention(width, heads, kind) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.rand(width))
        self.head = nn.Linear(width, words or CLASSES, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.words:
            x = self.embed(x) + self.positions(torch.arange(x.shape[1]))
        else:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for i, attention in enumerate(self.attention):
            x = x + self.scale * attention(self.norms[2 * i](x))
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.head(x if self.words else x[:, 0])


def _zoo(name: str, **arguments):
    return lambda: zoo.build(name, {"num_classes": CLASSES, **arguments})


NETWORKS = {
    "resnet": _zoo("resnet8"),
    "bottleneck": lambda: nn.Sequential(
        *list(zoo.build("resnet50", {"num_classes": CLASSES, "width": 2}).children())[:5],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ),
    "vgg": _zoo("vgg8", width=0.06),
    "vgg_bn": _zoo("vgg8_bn", width=0.06),
    "mobilenet": lambda: nn.Sequential(
        *zoo.build("mobilenetv2", {"num_classes": CLASSES, "width": 0.1}).features[:6],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ),
    "mlp": _zoo("mlp", image_size=16, hidden=8, depth=2),
    "vit": _zoo("vit_tiny", image_size=16, width=16, heads=4, depth=2),
    "dense": Dense,
    "excited": Excited,
    "unet": UNet,
    "shuffle": Shuffle,
    **{f"vit_{kind}": lambda kind=kind: Transformer(kind) for kind in ("fused", "chunk", "split", "folded", "module")},
    "lm": lambda: Transformer("causal", 8, 2, words=11),
    "lm_zoo": _zoo("gpt_tiny", num_classes=11, width=16, heads=2, depth=1, dropout=0.0),
    "lm_tied": lambda: Transformer("causal", 8, 2, words=11, tied=True),
    "encoder": lambda: nn.Sequential(
        nn.Flatten(2),
        nn.Linear(256, 8),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.Flatten(),
        nn.Linear(24, 5),
    ),
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with statistics and scales of its own, and a batch for it."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2)
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_()
    return network.eval(), torch.randint(0, 11, (3, 7)) if name.startswith("lm") else torch.randn(3, 3, 16, 16)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def trained(shared: Shared, x: Tensor, steps: int) -> None:
    """A few steps of both objectives."""
    shared.train()
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        wide, student = shared(x)
        target = torch.arange(wide.flatten(0, -2).shape[0] if wide.dim() == 3 else len(wide)) % CLASSES
        rows = [
            out.flatten(0, -2) if out.dim() == 3 else out.mean((2, 3)) if out.dim() == 4 else out
            for out in (wide, student)
        ]
        loss = sum(F.cross_entropy(row, target) for row in rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(shared.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_wide_network_is_the_student_and_the_student_is_in_it(name):
    student, x = made(name)
    before = copy.deepcopy(student.state_dict())
    for ratio in (2, 3):
        wide, projection = widen(student, ratio, x)
        assert not wide.training
        assert apart(wide(x), student(x)) < 1e-4
        found = projection(dict(wide.state_dict()))
        assert found.keys() == before.keys()
        for key, value in before.items():
            torch.testing.assert_close(found[key], value)
        assert sum(p.numel() for p in wide.parameters()) > 1.5 * sum(p.numel() for p in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_readout_is_the_shared_student_after_training(name):
    student, x = made(name)
    shared = share(student, 2, x)
    wide, narrow = shared(x)
    assert apart(wide, student(x)) < 1e-4
    assert apart(narrow, student(x)) < 1e-4
    trained(shared, x, 20)
    shared.eval()
    wide, narrow = shared(x)
    kept = readout(shared)
    assert apart(kept(x), narrow) < 1e-4
    assert apart(narrow, student(x)) > 1e-3
    assert apart(wide, narrow) > 1e-3
    again = copy.deepcopy(student)
    again.load_state_dict(kept.state_dict())
    assert apart(again(x), narrow) < 1e-4


@settings(max_examples=12, deadline=None)
@given(ratio=st.integers(2, 4), width=st.integers(1, 6), seed=st.integers(0, 999), branched=st.booleans())
def test_exactness_in_double_precision(ratio, width, seed, branched):
    torch.manual_seed(seed)
    student = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, groups=width),
        nn.Conv2d(2 * width, 3, (1, 4)),
        nn.Flatten(),
        nn.Linear(3 * 5 * 2, 4),
    ).double()
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    student(x)
    student.eval()
    shared = share(student, ratio, x, branches=tuple(BRANCHES) if branched else (), perturbation=0.5)
    wide, narrow = shared(x)
    assert apart(wide, student(x)) < 1e-9
    assert apart(narrow, student(x)) < 1e-9
    state = readout(shared).state_dict()
    for key, value in student.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_two_networks_written_out():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    shared = share(student, 2, x, perturbation=0.3)
    weights = [p.detach().clone().requires_grad_() for p in shared.wide.parameters()]

    def run(w1, b1, w2, b2, w3, b3):
        return ((x @ w1.T + b1).tanh() @ w2.T + b2).tanh() @ w3.T + b3

    w1, b1, w2, b2, w3, b3 = weights
    narrow = run(w1[::2], b1[::2], 2 * w2[::2, ::2], b2[::2], 2 * w3[:, ::2], b3)
    (run(*weights).square().sum() + narrow.sin().sum()).backward()
    wide_out, student_out = shared(x)
    (wide_out.square().sum() + student_out.sin().sum()).backward()
    for mine, reference in zip(shared.wide.parameters(), weights, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def test_perturbing_the_first_copies_breaks_the_readout():
    student, x = made("resnet")
    wide, projection = widen(student, 2, x)
    weight = wide.layer1[0].conv1.weight
    with torch.no_grad():  # zero-sum over the copies of the inputs, but in the first out-copy too
        weight[0, 0] += 0.1
        weight[0, 1] -= 0.1
    assert apart(wide(x), student(x)) < 1e-4
    assert apart(functional_call(student, projection(dict(wide.named_parameters())), x), student(x)) > 1e-3


def test_copies_of_the_wide_network_come_to_differ_where_symmetry_was_broken():
    student, x = made("vgg")
    for perturbation in (0.05, 0.0):
        wide, _ = widen(student, 2, x, perturbation=perturbation)
        first = wide.features[0].weight  # its inputs are pixels, which have no copies: no δ of its own
        assert torch.equal(first[::2], first[1::2])
        F.cross_entropy(wide(x), torch.arange(len(x))).backward()
        if perturbation:
            assert apart(first.grad[::2], first.grad[1::2]) > 1e-3
        else:
            torch.testing.assert_close(first.grad[::2], first.grad[1::2])


def test_statistics_are_kept_apart_and_frozen_layers_rest():
    student, x = made("resnet")
    for parameter in student.layer1.parameters():
        parameter.requires_grad_(False)
    shared = share(student, 2, x)
    assert not any(p.requires_grad for p in shared.wide.layer1.parameters())
    before = copy.deepcopy(shared.plain.state_dict())
    shared.train()
    shared.wide.layer1.eval()
    shared(x)
    assert torch.equal(shared.plain.layer1[0].bn1.running_mean, before["layer1.0.bn1.running_mean"])
    assert not torch.equal(shared.plain.bn1.running_mean, before["bn1.running_mean"])
    trained(shared, x, 2)
    wide = shared.wide.layer3[0].bn1.running_mean[::2]
    assert not torch.allclose(wide, shared.plain.layer3[0].bn1.running_mean)
    assert not list(shared.plain.parameters())


def test_branches_are_a_sum_and_refuse_unknown_names():
    student, x = made("vgg")
    shared = share(student, 2, x)
    assert set(shared.branches.values()) == {tuple(BRANCHES)}
    merged = shared.merged()
    origin = dict(shared.wide.named_parameters())
    assert all(not torch.equal(merged[name], origin[name]) for name in shared.branches)
    twin = copy.deepcopy(shared)
    torch.testing.assert_close(twin(x), shared(x))
    with pytest.raises(UserError, match="branch 'round' is not known"):
        share(student, 2, x, branches=("round",))


@pytest.mark.parametrize("size", [(3, 3), (1, 3), (5, 3)])
def test_a_branch_is_the_layers_it_is_named_after(size):
    """The kernel of each, against the layers in a row."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    parts = {
        branch: [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        for branch, shapes in _shapes(torch.Size((6, 4, *size))).items()
    }
    rows = {
        "pointwise": lambda one: F.conv2d(x, one),
        "average": lambda one: F.avg_pool2d(F.conv2d(x, one), size, stride=1),
        "series": lambda one, kernel: F.conv2d(F.conv2d(x, one[:, :, None, None]), kernel),
        "separable": lambda depthwise, one: F.conv2d(F.conv2d(x, depthwise.movedim(0, 1), groups=4), one),
    }
    assert parts.keys() == rows.keys() == BRANCHES.keys()
    for branch, layers in rows.items():
        kernel = BRANCHES[branch](size, *parts[branch]).expand(6, 4, *size)  # it is added to the origin
        padding = tuple(k // 2 for k in size) if branch == "pointwise" else 0
        torch.testing.assert_close(F.conv2d(x, kernel, padding=padding), layers(*parts[branch]))


class Advised(nn.Module):
    """Has another head in training, as some torchvision networks do."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.other = None if alike else nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.conv(x).mean((2, 3)), 0.5, self.training)
        return self.fc(x) + self.other(x) if self.training and self.other else self.fc(x)


class Padded(nn.Module):
    """A shortcut of padded channels, as in He et al.'s ResNets for CIFAR (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(x.relu().mean((2, 3)))


@pytest.mark.parametrize("ratio", [2, 3])
def test_padded_channels_are_shared_out_in_order(ratio):
    torch.manual_seed(0)
    student, x = Padded().eval(), torch.randn(2, 3, 8, 8)
    wide, narrow = share(student, ratio, x)(x)
    assert apart(wide, student(x)) < 1e-4
    assert apart(narrow, student(x)) < 1e-4


@pytest.mark.parametrize("last", [nn.LogSoftmax(1), nn.Softmax(1), nn.Sequential(nn.Tanh(), nn.LogSoftmax(-1))])
def test_outputs_may_be_normalised(last):
    torch.manual_seed(0)
    student, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), last).eval(), torch.randn(5, 4)
    shared = share(student, 2, x)
    wide, narrow = shared(x)
    assert shared.wide[0].weight.shape == (12, 4)
    assert shared.wide[2].weight.shape == (3, 12)
    assert apart(wide, student(x)) < 1e-4
    assert apart(narrow, student(x)) < 1e-4


class Scaled(nn.Module):
    """Computes with the number of its channels; without biases all of it vanishes for zeros."""

    def __init__(self, scale) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 2, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc((x * self.scale(x.shape[1])).mean((2, 3)))


class Recomputed(nn.Module):
    """Forgets what lies between, and computes it anew for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(checkpoint(lambda t: self.conv(t).relu(), x, use_reentrant=False).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "change", "words"),
    [
        (Scaled(torch.tensor), {"example": torch.zeros(2, 3, 8, 8)}, "its wide copy differs by"),
        (Recomputed(), {}, "switch gradient checkpointing off"),
        (Padded(), {"example": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "prepared and not raw"),
        (Padded(), {"example": torch.randn(2, 1, 8, 8)}, r"fails on the example of shape \[2, 1, 8, 8\]"),
        (Padded(), {"example": (torch.randn(2, 3, 8, 8),)}, "the example is a tuple; expected one tensor"),
        (Padded(), {"perturbation": -1.0}, "perturbation = -1.0 is no size"),
        (Padded(), {"perturbation": float("nan")}, "perturbation = nan is no size"),
        (Padded(), {"ratio": 3000}, "too many for this machine's memory; expected fewer: lower ratio"),
        (torch.compile(Padded()), {}, "is compiled and cannot be widened"),
    ],
)
def test_what_cannot_be_shared_is_told(network, change, words):
    with pytest.raises(UserError, match=words):
        share(network.eval(), **{"ratio": 2, "example": torch.randn(2, 3, 8, 8), **change})


def test_weights_that_are_not_finite_are_told():
    student = Padded().eval()
    with torch.no_grad():
        student.fc.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="gives values that are not finite"):
        share(student, 2, torch.randn(2, 3, 8, 8))


def test_networks_must_be_alike_in_training_too():
    x = torch.randn(2, 3, 8, 8)
    shared = share(Advised(alike=True), 2, x)  # dropout may differ
    trained(shared, x, 1)
    with pytest.raises(UserError, match=r"Advised cannot be widened: in training mode .*shapes cannot be multiplied"):
        share(Advised(alike=False), 2, x)


@pytest.mark.parametrize("ratio", [1, 0, 1.5, 2.0, True, "2"])
def test_bad_ratios(ratio):
    with pytest.raises(UserError, match="expected a whole number from 2"):
        widen(nn.Linear(2, 2), ratio, torch.randn(2, 2))


class Softened(nn.Module):
    """A softmax over channels, which copies would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)).softmax(1))


class Drawn(nn.Module):
    """Draws lots from its features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.bernoulli(self.conv(x).mean((2, 3)).sigmoid()))


def test_arguments_that_were_swapped_are_told_in_a_short_sentence():
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), torch.randn(2, 3, 8, 8)
    for call in (
        lambda: widen(network, x, 2),
        lambda: widen(network, 2, x, perturbation=x),
        lambda: shrink(network, x, x, ratio=0.5),
        lambda: shrink(network, x, ratio=x),
        lambda: shrink(network, x, macs=x),
        lambda: shrink(network, x, ratio={"0": x}),
        lambda: shrink(network, x, ratio=0.5, parts=x),
        lambda: shrink(network, x, ratio=0.5, layers=x),
        lambda: decouple(network, rank=x),
        lambda: decouple(network, macs=x, example=x),
    ):
        with pytest.raises(UserError, match=r"^[^\n]{20,300}$"):
            call()


@pytest.mark.parametrize(
    ("network", "example", "words"),
    [
        (Drawn(), torch.randn(2, 3, 8, 8), "Drawn.forward calls bernoulli"),
        (Softened(), torch.randn(2, 3, 8, 8), "Softened.forward calls softmax"),
        (nn.Sequential(nn.Linear(4, 2)), torch.randn(2, 4), "no hidden channels"),
        (nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 4)), torch.arange(4)[None], "module '1' \\(LSTM\\) calls lstm"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1), nn.Linear(3, 2)), torch.randn(2, 4), "module '1' \\(Softmax\\)"),
    ],
)
def test_what_cannot_be_widened_is_named(network, example, words):
    with pytest.raises(UserError, match=words):
        widen(network, 2, example)
