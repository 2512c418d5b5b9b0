"""Laws of stages: in a row they are the network, each is a part of it, and cuts of two networks correspond."""

import copy
import itertools
import math
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from protege.errors import UserError
from protege.models import InputSpec, Model
from protege.models.unet import FACTORIES as UNETS
from protege.models.zoo import ZOO
from protege.signals.identity import fingerprint
from protege.surgery import Chain, describe, find_cuts, pair, split
from protege.surgery.laws import close
from protege.torch_utils import trained_by


class Double(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Skips by concatenation; the sizes to grow to are asked of the skips, that of the outputs of the input."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 8)) -> None:
        super().__init__()
        self.down = nn.ModuleList(Double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(Double(a + b, a) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv2d(widths[0], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, skips = x.shape[-2:], []
        for number, block in enumerate(self.down):
            x = block(self.pool(x) if number else x)
            skips.append(x)
        skips.pop()
        for block in reversed(self.up):
            skip = skips.pop()
            if x.shape[-1] != skip.shape[-1]:
                x = F.interpolate(x, size=skip.shape[-2:])
            x = block(torch.cat((x, skip), 1))
        return F.interpolate(self.head(x), size=size, mode="bilinear")


class Dense(nn.Module):
    """Blocks that concatenate all that came before, with transitions that halve."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.stem, width, self.blocks, self.halve = nn.Conv2d(3, 6, 3, padding=1), 6, nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            layers = nn.ModuleList(nn.Conv2d(width + n * growth, growth, 3, padding=1) for n in range(3))
            self.blocks.append(layers)
            width += 3 * growth
            self.halve.append(nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 8, 1), nn.AvgPool2d(2)))
            width = 8
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers, halve in zip(self.blocks, self.halve, strict=True):
            found = [x]
            for layer in layers:
                found.append(layer(F.relu(torch.cat(found, 1))))
            x = halve(torch.cat(found, 1))
        batch = x.shape[0]
        return self.fc(x.mean((2, 3)).view(batch, -1))


class Excite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):
    """As timm writes it: one in-place activation used again and again, drop path, functional ends."""

    def __init__(self, inputs: int, width: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.se, self.act, self.drop_path = Excite(width), act, nn.Identity()
        self.downsample = nn.Conv2d(inputs, width, 1, stride) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act(self.bn1(self.conv1(x)))
        x = self.drop_path(self.se(self.bn2(self.conv2(x))))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act(x)


class Timm(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.act, self.drop = nn.ReLU(inplace=True), drop
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1, self.act), Block(4, 4, 1, self.act))
        self.layer2 = nn.Sequential(Block(4, 8, 2, self.act), Block(8, 8, 1, self.act))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        batch, _, height, _ = x.shape
        assert height >= 4, "too small"
        x = self.layer2(self.layer1(self.act(self.bn1(self.conv1(x)))))
        x = F.dropout(x.mean((2, 3)).reshape(batch, -1), self.drop, self.training)
        return self.fc(x)


class Wrapped(nn.Module):
    """A backbone that returns all its maps, and cannot be traced inside its last block."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > -1e9 else x

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, 2), Wrapped.Odd()

        def forward(self, x: Tensor) -> list[Tensor]:
            x = F.relu(self.a(x))
            return [x, self.c(self.b(x))]

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.fc = Wrapped.Backbone(), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([found.mean((2, 3)) for found in self.backbone(x)], 1))


def zoo(name: str, **arguments):
    return lambda: ZOO[name](5, **arguments)


NETWORKS = {
    "resnet20": (zoo("resnet20"), 16),
    "resnet56": (zoo("resnet56"), 8),
    "resnet8x4": (zoo("resnet8x4"), 8),
    "resnet10": (zoo("resnet10", width=4), 16),
    "resnet18": (zoo("resnet18", width=4, stem="imagenet"), 64),
    "resnet34": (zoo("resnet34", width=4), 16),
    "resnet50": (zoo("resnet50", width=4), 16),
    "vgg8": (zoo("vgg8", width=0.1), 32),
    "vgg16_bn": (zoo("vgg16_bn", width=0.1), 32),
    "mobilenetv2": (zoo("mobilenetv2", width=0.25, dropout=0.3), 16),
    "vit_tiny": (zoo("vit_tiny", width=24, depth=5, image_size=16), 16),
    "cnn_small": (zoo("cnn_small", width=4), 8),
    "cnn_tiny": (zoo("cnn_tiny"), 8),
    "unet": (UNet, 18),
    "unet10": (lambda: UNETS["unet10"](5, width=4), 40),
    "dense": (Dense, 12),
    "timm": (lambda: Timm(0.3), 8),
}
EXPECTED = {
    "resnet20": ["layer1", "layer2", "layer3"],
    "resnet56": ["layer1", "layer2", "layer3"],
    "resnet8x4": ["layer1", "layer2", "layer3"],
    "resnet10": ["layer1", "layer2", "layer3", "layer4"],
    "resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "resnet34": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "vgg8": ["features.1", "features.4", "features.7", "features.10", "features"],
    "vgg16_bn": ["features.5", "features.12", "features.22", "features.32", "features"],
    "mobilenetv2": ["features.3", "features.6", "features.13", "features"],
    "vit_tiny": [f"blocks.{n}" for n in range(5)],
    "cnn_small": ["layer1", "layer2", "layer3"],
    "cnn_tiny": ["layer1", "layer2"],
    "unet": ["down.0", "down.1", "down.2", "up.1", "up.0"],
    "unet10": ["stem", *(f"layer{n}" for n in range(1, 5)), *(f"decoder{n}" for n in range(1, 5))],
    "dense": ["halve.0.1", "halve.1.1"],
    "timm": ["layer1", "layer2"],
}


def made(name: str, batch: int = 3) -> tuple[nn.Module, Tensor]:
    """A network whose norms have something to say, and an example."""
    torch.manual_seed(0)
    build, side = NETWORKS[name]
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return network, torch.randn(batch, 3, side, side)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def heard(network: nn.Module, name: str, x: Tensor) -> list[Tensor]:
    """What a module gave at each call, by a plain hook."""
    found: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda _m, _a, out: found.append(out.clone()))
    network(x)
    handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_in_a_row_are_the_network(name):
    network, x = made(name)
    modes, before, attributes = [m.training for m in network.modules()], state(network), set(vars(network))
    cuts = find_cuts(network, x)
    assert [cut.name for cut in cuts] == EXPECTED[name]
    stages = split(network, [cut.name for cut in cuts], x)
    assert modes == [m.training for m in network.modules()]
    assert set(vars(network)) == attributes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert [stage.name for stage in stages] == [*EXPECTED[name], "head"]

    network.eval()
    for inputs in (x, torch.randn(5, *x.shape[1:])):  # another batch size too
        live = (inputs,)
        for stage, cut in zip(stages, [*cuts, None], strict=True):
            assert tuple(tuple(t.shape[1:]) for t in live) == stage.inputs
            assert all(len(t) == len(inputs) for t in live)
            kept = [t.clone() for t in live]
            given, live = live, stage.eval()(live)
            assert all(map(torch.equal, given, kept)), "a stage changed its input"
            if cut is not None:
                assert tuple(live[0].shape[1:]) == cut.shape == stage.outputs[0]
                assert torch.equal(live[0], heard(network, cut.name, inputs)[0])
        assert torch.equal(live, network(inputs))

    # every parameter is in one stage, as the network's own object, under the name it has in a `Model`
    own = {f"network.{key}": value for key, value in network.named_parameters()}
    shared = [item for stage in stages for item in stage.named_parameters()]
    assert len(shared) == len(own)
    assert all(own[key] is value for key, value in shared)
    assert sum(len(stage.state_dict()) for stage in stages) == len(network.state_dict())


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenetv2", "vit_tiny", "unet", "dense", "timm"])
def test_training_a_stage_trains_that_part_of_the_network(name):
    network, x = made(name)
    reference = copy.deepcopy(network)
    names = EXPECTED[name]
    stages = split(network, names, x)
    number = len(names) // 2
    stage, cut = stages[number], names[number]

    with torch.no_grad():
        live = Chain(stages[:number]).eval()(x)
    stage.train()
    out = stage(live)[0]
    torch.manual_seed(1)
    target = torch.randn_like(out)
    F.mse_loss(out, target).backward()

    reference.eval()  # the reference: the whole network, with this stage's modules in train mode
    inside = {key.removeprefix("network.") for key, m in stage.named_modules() if list(m.parameters(recurse=False))}
    inside |= {
        key
        for key, m in reference.named_modules()
        if f"network.{key}" in dict(stage.named_modules()) and not list(m.children())
    }
    for key, module in reference.named_modules():
        if key in inside:
            module.train()
    F.mse_loss(heard(reference, cut, x)[0], target).backward()
    own = {key.removeprefix("network."): value for key, value in stage.named_parameters()}
    for key, value in reference.named_parameters():
        if key in own:
            torch.testing.assert_close(own[key].grad, value.grad)
    assert all(value.grad is None for key, value in network.named_parameters() if key not in own)

    before = state(network)
    torch.optim.SGD(stage.parameters(), lr=0.1).step()
    stage(live)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(before[key], value)}
    mine = {key.removeprefix("network.") for key in stage.state_dict()}
    assert changed
    assert changed <= mine
    assert {key for key in own if own[key].grad.abs().max() > 0} <= changed


@settings(max_examples=8, deadline=None)
@given(data=st.data(), name=st.sampled_from(["resnet8x4", "unet", "timm", "dense", "vgg16_bn"]))
def test_any_cuts_compose_to_the_network(data, name):
    network, x = made(name, 2)
    names = [key for key, m in network.named_modules() if key and not isinstance(m, nn.ModuleList) and "se" not in key]
    order: dict[str, None] = {}
    handles = [
        network.get_submodule(key).register_forward_hook(lambda _m, _a, _o, key=key: order.setdefault(key))
        for key in names
    ]
    network.eval()(x)
    for handle in handles:
        handle.remove()
    chosen = data.draw(st.lists(st.sampled_from(list(order)), min_size=1, max_size=4, unique=True))
    chosen = sorted(chosen, key=list(order).index)
    try:
        stages = split(network, chosen, x)
    except UserError as error:
        assert re.search("does not come after|used in both|once the cut before it is made", str(error))  # noqa: PT017
        return
    assert torch.equal(Chain(stages).eval()(x), network(x))
    live: tuple[Tensor, ...] = (x,)
    for stage, cut in zip(stages, chosen, strict=False):
        live = stage(live)
        assert torch.equal(live[0], heard(network, cut, x)[0])


def test_norms_and_dropout_behave_as_in_the_network():
    network, x = made("timm")
    stages = split(network, ["layer1", "layer2"], x)
    reference = copy.deepcopy(network).train()
    torch.manual_seed(3)
    expected = reference(x)
    torch.manual_seed(3)
    found = Chain(stages).train()(x)  # functional dropout in the head as well: F.dropout(…, self.training)
    assert torch.equal(found, expected)
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in network.state_dict().items())
    stages[2].eval()
    live = tuple(torch.randn(3, *shape) for shape in stages[2].inputs)
    assert torch.equal(stages[2](live), stages[2](live))


def test_frozen_stages_stay_bit_identical():
    network, x = made("unet")
    stages = split(network, EXPECTED["unet"], x)
    for number, stage in enumerate(stages):
        before = [state(s) for s in stages]
        with torch.no_grad():
            live = Chain(stages[:number]).eval()(x)
        optimizer = torch.optim.SGD(stage.train().parameters(), lr=0.01)
        out = stage(live)
        (out[0] if number < 5 else out).square().mean().backward()
        optimizer.step()
        for other, (old, kept) in enumerate(zip(before, stages, strict=True)):
            same = all(torch.equal(old[key], value) for key, value in kept.state_dict().items())
            assert same == (other != number)


def test_a_copied_stage_is_apart_and_a_moved_one_is_not():
    network, x = made("timm")
    stage = split(network, ["layer1"], x)[0]
    other = copy.deepcopy(stage)
    live = (x,)
    assert torch.equal(other.eval()(live)[0], stage.eval()(live)[0])
    assert not {id(p) for p in other.parameters()} & {id(p) for p in stage.parameters()}
    stage.double()
    assert network.conv1.weight.dtype == network.bn1.running_mean.dtype == torch.float64


class Own(nn.Module):
    """Parameters, buffers and constants of its own around its modules."""

    def __init__(self, tied: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("shift", torch.rand(3, 1, 1))
        self.plain, self.tied = torch.rand(1, 3, 1, 1), tied
        if shared:
            self.c = self.a

    def forward(self, x: Tensor) -> Tensor:
        batch, mean = x.size(0), self.shift * 2
        x = self.a(x + self.plain) * self.scale + mean
        x = self.b(x).relu_() + torch.arange(3.0).view(1, 3, 1, 1)
        x = self.c(x) + mean
        return (x * self.scale if self.tied else x).reshape(batch, -1)


def test_parameters_buffers_and_constants_in_the_networks_own_code():
    torch.manual_seed(0)
    network, x = Own(), torch.randn(2, 3, 6, 6)
    stages = split(network, ["a", "b"], x)
    assert [len(stage.inputs) for stage in stages] == [1, 1, 1]  # neither `mean` nor `batch` crosses
    assert torch.equal(Chain(stages).eval()(x), network(x))
    assert torch.equal(Chain(stages)(x[:1]), network(x[:1]))
    feature = stages[1](stages[0]((x,)))[0]
    kept = feature.clone()
    stages[2]((feature,))
    assert torch.equal(feature, kept)  # though `relu_` follows the cut
    network.to(torch.float64)
    assert network.shift is stages[1].network.shift
    stages[1].to(torch.float32)
    assert network.shift is stages[1].network.shift


def test_a_frozen_prefix_is_a_source_known_by_its_own_weights():
    network, _ = made("unet10")
    spec = InputSpec(mean=(0.5,) * 3, std=(0.2,) * 3)
    raw = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    names = EXPECTED["unet10"]
    stages = split(network, names, spec(raw))
    prefix = Model(Chain(stages[:3]), spec)
    live = prefix.eval()(raw)
    assert torch.equal(live[0], heard(network.eval(), names[2], spec(raw))[0])
    assert torch.equal(Chain(stages[3:]).eval()(live), network(spec(raw)))
    before = fingerprint(prefix)
    with torch.no_grad():
        next(stages[3].parameters()).add_(1)
    assert fingerprint(prefix) == before
    with torch.no_grad():
        next(stages[1].parameters()).add_(1)
    assert fingerprint(prefix) != before


def test_a_module_called_twice_is_cut_at_its_first_call():
    network, x = made("timm")
    stages = split(network, ["act"], x)
    network.eval()
    calls = heard(network, "act", x)
    assert len(calls) > 4
    assert torch.equal(stages[0].eval()((x,))[0], calls[0])


class Turn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Naming(nn.Module):
    def __init__(self, inner: bool = True) -> None:
        super().__init__()
        self.inner = Naming(False) if inner else nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor):
        inner = self.inner(x)
        return inner["x"] if isinstance(inner, dict) else {"x": inner}


class Maker(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.how == "value" and x.mean() > 1e9:
            return x
        if self.how == "noise" and self.training:
            x = x * torch.rand(1)
        if self.how == "sizes":
            x = x * torch.rand(x.shape[0], 1, 1, 1)
        with torch.no_grad() if self.how == "no grad" else nullcontext():
            x = x + 1
        total = x.sum(0) if self.how == "batch" else 0
        x = x + total  # needed before the cut, too: else it would be made after it
        if self.how == "type" and isinstance(x, Tensor):
            x = x * 2
        return self.b(self.pool(x)[0]).mean((2, 3)) + (total.mean() if self.how == "batch" else 0)


@pytest.mark.parametrize(
    ("network", "cuts", "message"),
    [
        (Maker(""), ["aa"], "no module 'aa' to cut at"),
        (Maker(""), ["unused"], "'unused' is never called"),
        (nn.Sequential(Naming(), nn.Conv2d(3, 3, 1)), ["0.inner"], "'0.inner' does not return a single tensor"),
        (Maker(""), ["b", "a"], "named in the order b, a but are run in the order a, b"),
        (Maker(""), ["a", "a"], "'a' is named twice"),
        (Maker("value"), ["a"], "code of Maker cannot be traced .*branches on the numbers"),
        (Maker("noise"), ["a"], "code of Maker cannot be traced .*draws random numbers by itself"),
        (Maker("batch"), ["pool.x"], "no module"),
        (Maker("type"), ["a"], "do not compute what the network does"),
        (Own(shared=True), ["a"], "'a.weight' is used in both stages"),
        (Wrapped(), ["backbone.c.conv"], "the code of Odd 'backbone.c' cannot be traced"),
    ],
)
def test_what_cannot_be_cut_is_said_in_one_sentence(network, cuts, message):
    with pytest.raises(UserError, match=message) as caught:
        split(network, cuts, torch.randn(2, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_what_is_not_one_tensor_a_sample_cannot_cross():
    network = Maker("batch")
    with pytest.raises(UserError, match="not one tensor a sample"):
        split(nn.Sequential(network, nn.Linear(3, 3)), ["0.b"], torch.randn(2, 3, 8, 8))


class Lateral(nn.Module):
    """What the decoder needs is made early, as in feature pyramids."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.up = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.lateral = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(True))
        self.relu, self.head = nn.ReLU(inplace), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        size, skip = a.shape[2:], self.lateral(a)
        b = self.two(nn.functional.max_pool2d(self.relu(a), 2))
        return self.head(self.up(nn.functional.interpolate(b, size) + skip))


def test_what_a_stage_holds_bears_on_its_output():
    network, x = Lateral(), torch.randn(4, 3, 8, 8)
    stages = split(network, ["one", "two", "up"], x)
    held = [{name.removeprefix("network.") for name, _ in stage.named_parameters()} for stage in stages]
    assert {name.split(".")[0] for name in held[2]} == {"lateral", "up"}
    assert torch.equal(Chain(stages).eval()(x), network.eval()(x))
    live = (x,)
    for stage in stages:
        live = tuple(value.detach() for value in live)
        live = stage.train()(live)
        (live[0] if stage is not stages[-1] else live).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters())


def test_what_can_be_in_no_stage_is_refused():
    network, x = Lateral(inplace=True), torch.randn(4, 3, 8, 8)
    with pytest.raises(UserError, match="'lateral' does not bear on the cut 'two' but reads what is changed in place"):
        split(network, ["one", "two", "up"], x)
    assert len(split(network, ["one", "up"], x)) == 3


class Attending(nn.Module):
    """A block that gives what it attends to beside its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend, self.mlp = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, weights = self.attend(x, x, x)
        x = x + attended
        return x + self.mlp(x).relu(), weights


class Attentive(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(20, 12), nn.ModuleList(Attending(12) for _ in range(depth))
        self.places = nn.Embedding(8, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        lowest, places = torch.finfo(x.dtype).min, self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x + places)[0].clamp(min=lowest)
        return self.head(self.norm(x))


def test_blocks_that_return_several_values_are_cut_at_their_first():
    network, tokens = Attentive().eval(), torch.randint(0, 20, (3, 8))
    assert [cut.name for cut in find_cuts(network, tokens)] == ["blocks.0", "blocks.1", "blocks.2"]
    stages = split(network, ["blocks.0", "blocks.2"], tokens)
    other = torch.randint(0, 20, (2, 8))
    first = heard_first(network, "blocks.0", other)
    assert torch.equal(stages[0].eval()((other,))[0], first)
    assert torch.equal(Chain(stages).eval()(other), network(other))
    owners = [stage for stage in stages if any(p is network.places.weight for p in stage.parameters())]
    assert owners == stages[:1]  # places, which all blocks add, learn where they are first used


def heard_first(network: nn.Module, name: str, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda _m, _a, out: kept.append(out[0].clone()))
    network(x)
    handle.remove()
    return kept[0]


def test_a_network_without_cuts_is_its_head():
    network, x = made("cnn_tiny")
    (head,) = split(network, [], x)
    assert torch.equal(head.eval()((x,)), network.eval()(x))
    assert Chain([])(x) == (x,)


def test_untraceable_blocks_are_taken_whole():
    network, x = Wrapped(), torch.randn(2, 3, 12, 12)
    names = [cut.name for cut in find_cuts(network, x)]
    assert "backbone.c.conv" not in names
    stages = split(network, ["backbone.a", "backbone.c"], x)
    assert len(stages[1].outputs) == 2  # the first map crosses too
    assert torch.equal(Chain(stages).eval()(x), network(x))


# ---- pairs ------------------------------------------------------------------------------------------------------

PAIRS = [
    ("resnet20", "resnet56", 16, 16, ["layer1", "layer2", "layer3"], ["layer1", "layer2", "layer3"]),
    ("resnet20", "resnet8x4", 16, 32, ["layer1", "layer2", "layer3"], ["layer1", "layer2", "layer3"]),
    ("resnet20", "resnet34", 16, 16, ["layer1", "layer2", "layer3"], ["layer1", "layer2", "layer3"]),
    ("resnet10", "resnet18", 64, 64, ["layer2", "layer3", "layer4"], ["relu", "layer1", "layer2"]),
    ("vgg8", "vgg16_bn", 32, 32, EXPECTED["vgg8"], EXPECTED["vgg16_bn"]),
    ("resnet10", "mobilenetv2", 16, 16, EXPECTED["resnet10"], EXPECTED["mobilenetv2"]),
    ("unet", "unet", 18, 36, EXPECTED["unet"], EXPECTED["unet"]),
    ("timm", "resnet20", 8, 16, ["layer1", "layer2"], ["layer1", "layer2"]),
]


@pytest.mark.parametrize(("student", "teacher", "size", "other", "ours", "theirs"), PAIRS)
def test_networks_are_paired_by_resolution(student, teacher, size, other, ours, theirs):
    a, b = made(student)[0], made(teacher)[0]
    x, y = torch.randn(2, 3, size, size), torch.randn(2, 3, other, other)
    pairs = pair(a, b, x, y)
    assert [p.student.name for p in pairs] == ours
    assert [p.teacher.name for p in pairs] == theirs
    for p in pairs:
        assert p.student.level == p.teacher.level
        assert p.adapter == (p.student.shape[0] != p.teacher.shape[0])
        assert tuple(heard(a, p.student.name, x)[0].shape[1:]) == p.student.shape
    rows = describe(pairs, split(a, ours, x))
    assert [row["teacher"] for row in rows] == [*theirs, None]
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in a.parameters())


def test_transformers_are_paired_by_depth():
    student, x = made("vit_tiny")
    teacher = ZOO["vit_tiny"](5, image_size=16, depth=12, width=48)
    pairs = pair(student, teacher, x, x)
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        (f"blocks.{a}", f"blocks.{b}") for a, b in zip((0, 1, 2, 4), (2, 5, 8, 11), strict=True)
    ]
    assert all(p.adapter for p in pairs)


def test_stages_named_by_the_user():
    student, x = made("resnet10")
    teacher = made("resnet34")[0]
    pairs = pair(student, teacher, x, x, "relu=layer1.0, layer2 =layer2.3,layer4")
    assert [(p.student.name, p.teacher.name) for p in pairs] == [
        ("relu", "layer1.0"),
        ("layer2", "layer2.3"),
        ("layer4", "layer4"),
    ]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("layer9=layer1", "the student has no module 'layer9' to cut at; did you mean"),
        ("layer1=lyer1", "the teacher has no module 'lyer1' to cut at; did you mean 'layer1'"),
        ("", "stages = '' cannot be read at ''; expected student_module=teacher_module"),
        ("layer1=", "cannot be read at 'layer1='"),
        ("stem,layer1=layer1=layer2", "cannot be read at 'layer1=layer1=layer2'"),
        ("layer1=layer2", "pairs the student's output of shape .* with the teacher's"),
        ("layer1=layer1,layer1=layer2", "the student's module 'layer1' is named twice"),
        ("layer2=layer1,layer1=layer2", "the student's stages are named in the order layer2, layer1 but are run"),
        ("layer1=layer2,layer2=layer1", "the teacher's stages are named in the order layer2, layer1"),
        ("fc=layer1", "pairs the student's output of shape"),
    ],
)
def test_stages_that_do_not_pair_up(stages, message):
    student, x = made("resnet20")
    with pytest.raises(UserError, match=message) as caught:
        pair(student, made("resnet8x4")[0], x, x, stages)
    assert "\n" not in str(caught.value)


def test_maps_with_the_channels_last_are_maps():
    network = nn.Sequential(nn.Conv2d(3, 40, 2, 2), Turn(), nn.Linear(40, 8), nn.Linear(8, 4))
    other = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(512, 4))
    x = torch.randn(2, 3, 16, 16)
    (matched,) = pair(network, other, x, x, "2=1")  # [8, 8, 8], by its values
    ours, theirs = heard(network, "2", x)[0], heard(other, "1", x)[0]
    assert (matched.student.last, matched.teacher.last) == (True, False)
    assert not matched.adapter
    assert torch.equal(matched.student.laid_out(ours), ours.permute(0, 3, 1, 2))
    assert matched.teacher.laid_out(theirs) is theirs
    with pytest.raises(UserError, match=r"gives an output of shape \[3, 5, 14\]; expected a map"):
        pair(nn.Sequential(nn.Conv2d(3, 3, (12, 3))), other, x, x, "0=1")


def test_networks_that_do_not_correspond():
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(UserError, match="correspond by themselves; name them"):
        pair(ZOO["mlp"](5, image_size=16), made("resnet20")[0], x, x)
    with pytest.raises(UserError, match="correspond by themselves"):
        pair(made("vit_tiny")[0], made("resnet20")[0], x, x)


class Keeping(nn.Module):
    """Keeps values beside the graph in the way ``how`` says; its stages are cut after ``a``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.o = how, nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)
        self.kept: list[Tensor] = []
        self.memory, self.count, self.said = None, 0, {}
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("centre", torch.zeros(8))
        if how == "hook":
            self.a.register_forward_hook(lambda module, args, output: self.kept.append(output))
        if how in ("unseen", "number of a leaf"):
            self.a.register_forward_hook(lambda module, args, output: self.said.update(a=output.mean()))
        if how == "unseen":
            self.b.register_forward_hook(lambda module, args, output: output + self.said["a"])

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        x, how = self.a(x), self.how
        mean = x.detach().mean((0, 2, 3))
        if self.training:
            if how == "counter":
                self.steps += 1
            if how == "counter in place":
                self.steps.add_(1)
            if how == "centre":
                self.centre = 0.9 * self.centre + 0.1 * mean
            if how == "centre in place":
                with torch.no_grad():
                    self.centre.mul_(0.9).add_(mean, alpha=0.1)
            self.count += 1
        if how == "attribute":
            self.memory = x
        if how == "memory":
            x, self.memory = x if self.memory is None else x + self.memory, mean.mean()
        if how == "made at first" and self.memory is None:
            self.memory = torch.linspace(0, 1, x.shape[-1])
        if how == "made for the batch":
            self.memory = torch.ones(int(x.shape[0]), 1, 1, 1)
        if how == "number of a leaf":
            x = x * float(self.said["a"])
        if how == "constant":
            x = x - torch.arange(8)[:, None, None] / 8
        if how == "item" and x.abs().mean().item() > 1e-9:
            x = x * 2
        if how == "item in the graph":
            x = x * x.mean().item()
        if how == "warm-up" and self.training:
            x = x * min(1, self.count / 100)
        x = self.b(self.memory.relu() if how == "attribute" else x.relu())
        x = x - self.centre[:, None, None] + (self.memory.sum() if how.startswith("made") else 0)
        return self.o(x.mean((2, 3)) + (self.kept[0].mean() if how == "hook" else 0))


@pytest.mark.parametrize(
    "how",
    [
        *("counter", "counter in place", "centre", "centre in place", "attribute", "made at first", "constant"),
        "item in the graph",
    ],
)
def test_stages_keep_what_the_network_keeps(how):
    network, x = Keeping(how), torch.randn(4, 3, 8, 8)
    before, values = copy.deepcopy(network.state_dict()), {k: v for k, v in vars(network).items() if k[0] != "_"}
    stages = split(network, ["a"], x)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert values == {k: v for k, v in vars(network).items() if k[0] != "_"}
    plain = copy.deepcopy(network)
    for count in (3, 1, 5):  # buffers move on as in the network
        other = torch.randn(count, 3, 8, 8)
        assert torch.equal(Chain(stages).train()(other), plain.train()(other))
        assert torch.equal(Chain(stages).eval()(other), plain.eval()(other))
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), plain.buffers(), strict=True))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("memory", "goes on with a tensor .its attribute 'memory'. kept"),
        ("number of a leaf", "asks for a number inside a tensor"),
        ("warm-up", "goes on with a number"),
        ("made for the batch", "depends on the batch size"),
        ("item", "branches on the numbers inside a tensor"),
    ],
)
def test_stages_hold_nothing_of_the_example(how, message):
    with pytest.raises(UserError, match=message) as caught:
        split(Keeping(how), ["a"], torch.randn(4, 3, 8, 8))
    assert "\n" not in str(caught.value)


class Collecting(nn.Module):
    """Features are collected by hooks: behind layers or before them, and in a block; some change what goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.block = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8), nn.ReLU())
        self.o, self.kept, self.seen = nn.Linear(32, 5), [], 0
        self.a.register_forward_hook(lambda module, args, output: self.kept.append(output))
        self.b.register_forward_pre_hook(lambda module, args: self.kept.append(args[0].relu()))
        self.b.register_forward_hook(lambda module, args, kwargs, output: output + 1, with_kwargs=True)
        self.block[1].register_forward_hook(lambda module, args, output: self.kept.append(output))
        self.block.register_forward_hook(self.watch)

    def watch(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """What cannot be recorded, and has no bearing on the outputs."""
        self.seen += int(output.detach().mean() > 0) + 1

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        self.kept.append(self.block(self.b(self.a(x))))
        return self.o(torch.cat([kept.mean((2, 3)) for kept in self.kept], 1))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("cuts", [["a"], ["b", "block"], ["block.1"]])
def test_what_hooks_collect_crosses_the_cuts(cuts):
    torch.manual_seed(0)
    network, x = Collecting(), torch.randn(4, 3, 16, 16)
    stages = split(network, cuts, x)
    for count in (3, 1):
        other = torch.randn(count, 3, 16, 16)
        expected = network.eval()(other)
        network.kept.clear()
        assert torch.equal(Chain(stages).eval()(other), expected)
        assert len(network.kept) <= 1, "a stage's pass is kept by a hook"
    stages[0].train()((x,))[0].square().mean().backward()
    assert network.a.weight.grad.abs().sum() > 0


class Tied(nn.Module):
    """A language model as people write them: tied embeddings, positions and a mask made of sizes, one of padding."""

    def __init__(self, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(20, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 16, batch_first=True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 20)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        assert isinstance(length, int)
        places = torch.arange(length, device=tokens.device)
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        padding = tokens == 0
        x = self.embed(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x, src_mask=mask, src_key_padding_mask=padding)
        return self.head(nn.ReLU()(self.norm(x)))


def test_stages_of_a_language_model_lie_between_its_blocks():
    torch.manual_seed(0)
    network, tokens = Tied().eval(), torch.randint(1, 20, (3, 8))
    cuts = find_cuts(network, tokens)
    assert [(cut.name, cut.shape, cut.level) for cut in cuts] == [(f"blocks.{n}", (8, 12), 0) for n in range(3)]
    assert [p.teacher.name for p in pair(network, Tied(16, 6), tokens, tokens)] == ["blocks.1", "blocks.3", "blocks.5"]
    stages = split(network, [cut.name for cut in cuts], tokens)
    other = torch.randint(0, 20, (5, 8))
    other[:, 0] = 1
    torch.testing.assert_close(Chain(stages).eval()(other), network(other))

    # what is tied learns in the first stage, and is as it stands there in the last
    assert {name for name, _ in stages[-1].named_parameters()} == {
        "network.norm.weight",
        "network.norm.bias",
        "network.head.bias",
    }
    before = network.embed.weight.detach().clone()
    stages[-1].train()(Chain(stages[:-1])(tokens)).square().mean().backward()
    torch.optim.SGD(stages[-1].parameters(), lr=0.1).step()
    assert network.embed.weight.grad is not None  # by the stages before it alone
    assert torch.equal(network.embed.weight, before)
    network.zero_grad()
    live = tuple(value.detach() for value in Chain(stages[:-1])(tokens))
    stages[-1](live).square().mean().backward()
    assert network.embed.weight.grad is None
    assert network.norm.weight.grad is not None
    with torch.no_grad():
        network.embed.weight.mul_(1.1)
    torch.testing.assert_close(Chain(stages).eval()(other), network.eval()(other))


class Held(nn.Sequential):
    """BatchNorm in eval mode and its own code not in training, as their author wants them."""

    def train(self, mode: bool = True) -> "Held":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def test_modes_of_an_own_train_are_kept():
    network = Held(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).eval()
    assert trained_by(network) == {network, network[0], network[2]}
    assert not any(module.training for module in network.modules())


def test_outputs_are_close_but_for_rounding():
    """What is not a number, or infinite, must be the same."""
    wanted = torch.tensor([1.0, -2.0, math.inf, math.nan])
    assert close(wanted * (1 + 1e-6), wanted)
    assert close(wanted.double(), wanted)
    for place, value in ((0, 1.001), (2, -math.inf), (2, math.nan), (3, 0.0), (3, math.inf)):
        other = wanted.clone()
        other[place] = value
        assert not close(other, wanted), (place, value)
    assert not close(wanted[:1].long(), wanted[:1])
