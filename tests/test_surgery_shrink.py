"""Laws of shrinking: a pruned network is the original with channels at zero; all pairs are the convolution itself."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from protege.errors import UserError
from protege.models import count_macs, load_model
from protege.surgery import Decoupled, compose, decouple, rebuild, record, shrink
from protege.surgery.counting import profile
from protege.surgery.layers import LAYERS

NETWORKS = {
    "vgg11?width=0.125": 16,
    "vgg11_bn?width=0.125": 16,
    "resnet20": 8,
    "resnet56": 8,
    "resnet18?width=8": 8,
    "resnet50?width=8": 8,
    "mobilenetv2?width=0.25": 16,
    "mlp?image_size=4&hidden=20&depth=3": 4,
}
WITH_NORM = [name for name in NETWORKS if not name.startswith(("vgg11?", "mlp"))]


def made(name, seed=0, dtype=torch.float64):
    """A network of the zoo with nothing at its initial zeros or ones, and an example for it."""
    torch.manual_seed(seed)
    network = load_model(f"zoo:{name}", num_classes=5).network.to(dtype).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.2, 2)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, LAYERS) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.2)
    side = NETWORKS.get(name, 8)
    return network, torch.randn(2, 3, side, side, dtype=dtype)


def masked(network, kept):
    """The original with the channels that went held at zero: their filters, biases and BatchNorms are."""
    network = copy.deepcopy(network)
    last = None
    with torch.no_grad():
        for name, module in network.named_modules():
            if name in kept:
                size = len(module.weight)
                last = torch.ones(size, dtype=torch.bool)
                last[kept[name]] = False
            if name in kept or isinstance(module, _BatchNorm):  # a BatchNorm here follows its convolution
                module.weight[last] = 0
                if module.bias is not None:
                    module.bias[last] = 0
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_the_original_with_channels_at_zero(name):
    network, example = made(name)
    before = copy.deepcopy(network.state_dict())
    for how in ["l1", "slim"] if name in WITH_NORM else ["l1"]:
        shrunk = shrink(network, example, how, ratio=0.4)
        assert count_macs(shrunk.network, example) < count_macs(network, example)
        torch.testing.assert_close(shrunk.network(example), masked(network, shrunk.kept)(example), rtol=0, atol=1e-9)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Ring(nn.Module):
    """Residual layers over a closed sequence."""

    def __init__(self, mode):
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3, padding=1, padding_mode=mode)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(8, 8, 3, padding=1, padding_mode=mode), nn.BatchNorm1d(8), nn.ReLU())
            for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(-1))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padded_sequences_are_pruned(mode):
    network, example = Ring(mode).double().eval(), torch.randn(2, 3, 16, dtype=torch.float64)
    shrunk = shrink(network, example, "l1", ratio=0.5)
    torch.testing.assert_close(shrunk.network(example), masked(network, shrunk.kept)(example), rtol=0, atol=1e-9)
    assert {m.padding_mode for m in shrunk.network.modules() if isinstance(m, nn.Conv1d)} == {mode}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_has_the_originals_weights_at_what_it_kept(name):
    network, example = made(name)
    kept = shrink(network, example, "l1", ratio=0.4).kept
    shrunk = shrink(network, example, "l1", ratio=0.4).network  # the same again
    for layer, module in shrunk.named_modules():
        if not isinstance(module, LAYERS):
            continue
        size = len(kept[layer])
        rows = (
            network.get_submodule(layer)
            .weight[kept[layer]]
            .flatten(1)
            .unflatten(1, (-1, math.prod(module.weight.shape[2:])))
        )
        weight = module.weight.reshape(size, -1, rows.shape[2])
        assert len(weight) == len(kept[layer]) == len(set(kept[layer]))
        assert kept[layer] == sorted(kept[layer])
        # each remaining input is one of the original's, the same one for all outputs
        assert all((rows == weight[:, n : n + 1]).all(2).all(0).any() for n in range(weight.shape[1]))
    assert kept[list(kept)[-1]] == list(range(5))  # the logits are whole


@pytest.mark.parametrize("how", ["l1", "slim"])
@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2?width=0.25", "vgg11_bn?width=0.125"])
def test_a_target_of_multiply_adds_is_met(name, how):
    network, example = made(name, dtype=torch.float32)
    for target in (0.3, 0.7):
        found = count_macs(shrink(network, example, how, macs=target).network, example)
        assert abs(found / count_macs(network, example) - target) <= 0.02


def test_filters_go_by_their_absolute_sum():
    network, example = made("vgg11_bn?width=0.125")
    kept = shrink(network, example, "l1", ratio=0.5).kept["features.4"]
    sums = network.features[4].weight.abs().sum((1, 2, 3))
    assert len(kept) == len(sums) // 2
    assert sums[kept].min() >= sums[[n for n in range(len(sums)) if n not in kept]].max()


def test_slimming_ranks_the_scales_of_all_layers_together():
    network, example = made("vgg11_bn?width=0.125")
    norms = [module for module in network.features if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(1, 2)
        norms[2].weight[:20] = 0.01  # of 32
    kept = shrink(network, example, "slim", ratio=20 / sum(len(norm.weight) for norm in norms)).kept
    assert kept["features.8"] == list(range(20, 32))
    assert all(len(kept[k]) == len(network.get_submodule(k).weight) for k in kept if k != "features.8")


def test_the_few_sample_papers_layers_can_be_named():
    network, example = made("vgg11?width=0.125")
    ratios = {"features.0": 0.5, "features.1[0-9]": 0.25}
    kept = shrink(network, example, ratio=ratios).kept
    wide = {name: len(network.get_submodule(name).weight) for name in kept}
    lost = {name: 1 - len(channels) / wide[name] for name, channels in kept.items()}
    assert lost["features.0"] == 0.5
    assert {name for name in lost if lost[name] == 0.25} == {n for n in lost if n.startswith("features.1")}
    assert all(len(v) == wide[k] for k, v in kept.items() if k != "features.0" and not k.startswith("features.1"))
    some = shrink(network, example, ratio=0.5, layers=["features.3"]).kept
    assert [name for name in some if len(some[name]) < wide[name]] == ["features.3"]


class Grouped(nn.Module):
    """A grouped convolution, a concatenation and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.first(x).relu()
        x = torch.cat([x, self.grouped(x).relu()], 1)
        return self.last(self.up(self.depthwise(x).relu()).relu())


def test_groups_concatenations_and_transposed_convolutions():
    torch.manual_seed(0)
    network, example = Grouped().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    shrunk = shrink(network, example, ratio=0.5)
    with torch.no_grad():
        for name, module in network.named_modules():
            if name:
                gone = [n for n in range(module.out_channels) if n not in shrunk.kept[name]]
                if name == "up":
                    module.weight[:, gone] = 0
                else:
                    module.weight[gone] = 0
                module.bias[gone] = 0
    torch.testing.assert_close(shrunk.network(example), network(example), rtol=0, atol=1e-9)


def vit():
    torch.manual_seed(0)
    network = load_model("zoo:vit_tiny?image_size=8&depth=2&width=24&heads=4", num_classes=5).network.double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return network, torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_a_transformer_loses_heads_stream_and_hidden_units():
    network, x = vit()
    shrunk = shrink(network, x, ratio=0.5)
    assert shrunk.parts == {"stream": (24, 12), "heads": (8, 4), "hidden": (192, 96)}
    assert len(shrunk.kept["blocks.0.mlp.fc1"]) == 48
    assert len(shrunk.kept["blocks.0.attn.qkv"]) == 3 * 12
    assert sum(p.numel() for p in shrunk.network.parameters()) < 0.3 * sum(p.numel() for p in network.parameters())
    again = rebuild(vit()[0], record(network, shrunk.network))
    again.load_state_dict(shrunk.network.state_dict())
    assert torch.equal(again(x), shrunk.network(x))


@pytest.mark.parametrize("part", ["heads", "hidden"])
def test_a_part_of_a_transformer_is_the_original_without_it(part):
    network, x = vit()
    shrunk = shrink(network, x, ratio=0.5, parts=[part])
    assert list(shrunk.parts) == [part]
    reference = copy.deepcopy(network)
    with torch.no_grad():
        for n, block in enumerate(reference.blocks):
            name, reader = ("attn.qkv", block.attn.proj) if part == "heads" else ("mlp.fc1", block.mlp.fc2)
            kept = shrunk.kept[f"blocks.{n}.{name}"]
            if part == "heads":  # the same whole heads of queries, keys and values
                values = [channel - 48 for channel in kept if channel >= 48]
                assert kept == [channel + 24 * third for third in range(3) for channel in values]
                assert sorted({channel // 6 for channel in values}) == [channel // 6 for channel in values[::6]]
                kept = values
            gone = sorted(set(range(reader.in_features)) - set(kept))
            reader.weight[:, gone] = 0
    torch.testing.assert_close(shrunk.network(x), reference(x), rtol=0, atol=1e-9)


def test_a_residual_stream_is_the_original_of_the_kept_channels_by_hand():
    network, x = vit()
    shrunk = shrink(network, x, ratio=0.5, parts=["stream"])
    kept = shrunk.kept["blocks.0.mlp.fc2"]
    assert shrunk.parts == {"stream": (24, 12)}
    assert len(kept) == 12
    for name, parameter in shrunk.network.named_parameters():
        whole = network.get_parameter(name)
        for dim, (before, after) in enumerate(zip(whole.shape, parameter.shape, strict=True)):
            whole = whole.index_select(dim, torch.tensor(kept)) if before != after else whole
        assert torch.equal(parameter, whole)


@pytest.mark.parametrize("parts", [[], "heads", ["head"]])
def test_parts_that_there_are_not(parts):
    with pytest.raises(UserError, match=r"parts = .*expected some of heads, stream, hidden"):
        shrink(*vit(), ratio=0.5, parts=parts)


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 5), outputs=st.integers(1, 12), kernel=st.sampled_from([(3, 3), (2, 2), (1, 3), (5, 3)]),
    stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2), bias=st.booleans(),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
)  # fmt: skip
def test_all_pairs_are_the_convolution(inputs, outputs, kernel, stride, padding, dilation, bias, mode):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias, "padding_mode": mode}
    network = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **options)).double()
    pairs = decouple(network, kernel[0] * kernel[1], layers=["0"]) if outputs >= kernel[0] * kernel[1] else None
    pairs = pairs or decouple(network, min(outputs, kernel[0] * kernel[1]), layers=["0"])
    x = torch.randn(2, inputs, 13, 11, dtype=torch.float64)
    assert isinstance(pairs.network[0], Decoupled)
    assert pairs.kept == {name: list(range(outputs)) for name in ("0", "0.pointwise")}
    torch.testing.assert_close(pairs.network(x), network(x), rtol=0, atol=1e-9)


def test_fewer_pairs_are_the_nearest_for_each_input_channel():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 10, 3).double()
    errors = []
    for rank in range(1, 10):
        pair = decouple(nn.Sequential(conv), rank, layers=["0"]).network[0]
        made = torch.einsum(
            "oir,irhw->oihw", pair.pointwise.weight.view(10, 3, rank), pair.depthwise.weight.view(3, rank, 3, 3)
        )
        rest = torch.linalg.svdvals(conv.weight.flatten(2).transpose(0, 1))[:, rank:]
        errors.append((made - conv.weight).square().sum())
        torch.testing.assert_close(errors[-1], rest.square().sum(), rtol=1e-9, atol=1e-12)
    assert errors == sorted(errors, reverse=True)


def test_decoupling_leaves_the_first_convolution_and_meets_a_target():
    network, example = made("resnet20", dtype=torch.float32)
    shrunk = decouple(network, macs=0.5, example=example)
    assert type(shrunk.network.conv1) is nn.Conv2d
    share = count_macs(shrunk.network, example) / count_macs(network, example)
    assert 0.45 < share <= 0.5


def test_layers_costs_add_up():
    for name in ("resnet20", "mobilenetv2?width=0.25"):
        network, example = made(name, dtype=torch.float32)
        total, layers = profile(network, example)
        assert total == sum(layers.values()) == count_macs(network, example)


def test_what_was_kept_twice_counts_in_the_first_networks_channels():
    network, example = made("resnet20")
    first = shrink(network, example, ratio=0.3)
    second = shrink(first.network, example, "slim", ratio=0.3)
    both = compose(first.kept, second.kept)
    torch.testing.assert_close(second.network(example), masked(network, both)(example), rtol=0, atol=1e-9)
    pairs = decouple(first.network, 2)
    assert compose(first.kept, pairs.kept) == first.kept


def test_modes_are_as_before_and_all_weights_learn():
    network, example = made("resnet20")
    network.train().requires_grad_(False)
    for shrunk in (shrink(network, example, ratio=0.5).network, decouple(network, 2).network):
        assert all(module.training for module in shrunk.modules())
        assert all(parameter.requires_grad for parameter in shrunk.parameters())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("told", "how", "options"),
    [
        ("ratio is 1.0; expected a share above 0", "l1", {"ratio": 1.0}),
        ("ratio is 0; expected", "l1", {"ratio": 0}),
        ("macs is 2; expected", "l1", {"macs": 2}),
        ("the ratio of 'conv1' is 7", "l1", {"ratio": {"conv1": 7}}),
        ("expected one of them", "l1", {"ratio": 0.5, "macs": 0.5}),
        ("expected one of them", "l1", {}),
        ("how = 'l2' is no way", "l2", {"ratio": 0.5}),
        ("did you mean 'layer2.0.conv1'", "l1", {"ratio": {"layer2.0.con1": 0.5}}),
        ("'fc' cannot be shrunk", "l1", {"ratio": 0.5, "layers": ["fc"]}),
        ("cannot be met; expected", "l1", {"macs": 0.3, "layers": ["layer1.0.conv1"]}),
        ("channels are tied", "l1", {"ratio": {"conv1": 0.5, "layer1.0.conv2": 0.25}}),
        ("removes no channel", "l1", {"ratio": 0.001}),
    ],
)
def test_bad_input_is_told_in_one_sentence(told, how, options):
    network, example = made("resnet20")
    with pytest.raises(UserError) as caught:
        shrink(network, example, how, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


class Fixed(nn.Module):
    """Counts on 8 channels in its own code."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)
        self.scale = torch.arange(8.0).view(1, 8)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)) * self.scale)


def test_networks_that_cannot_be_shrunk():
    with pytest.raises(UserError, match="no channels that can be removed"):
        shrink(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(1, 3, 2, 2), ratio=0.5)
    network, example = made("vgg11?width=0.125")
    with pytest.raises(UserError, match=r"no channels scaled by BatchNorm.*how='l1'"):
        shrink(network, example, "slim", ratio=0.5)
    with pytest.raises(
        UserError, match=r"removed there: 'conv' \(Fixed.forward calls mul, which takes what is no channel with them\)"
    ):
        shrink(Fixed(), torch.randn(1, 3, 8, 8), ratio=0.5)
    with pytest.raises(UserError, match="does not run on the example"):
        shrink(network, torch.randn(2, 1, 8, 8), ratio=0.5)
    with pytest.raises(UserError, match="nothing to decouple"):
        decouple(nn.Sequential(nn.Linear(3, 3)), 1)
    with pytest.raises(UserError, match="whole number from 1 to 9"):
        decouple(network, 10)
    with pytest.raises(UserError, match="out of reach of decoupling"):
        decouple(network, macs=0.01, example=example)


class Scaled(nn.Module):
    """Scales channels by a buffer, not by a parameter."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)

    def forward(self, x):
        return x * self.weight[:, None, None]


def test_a_buffer_by_the_name_of_a_weight_is_cut_with_the_channels():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(8), nn.ReLU(), nn.Conv2d(8, 4, 6))
    shrunk = shrink(network, torch.randn(2, 3, 8, 8), ratio=0.5)
    assert shrunk.network[1].weight.equal(network[1].weight[shrunk.kept["0"]])
    assert len(shrunk.kept["0"]) == 4


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM, nn.GRUCell])
def test_recurrent_layers_lose_what_they_read(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.reads, self.fc = nn.Conv2d(3, 8, 3), kind(8, 6), nn.Linear(6, 4)

        def forward(self, x):
            read = self.reads(self.conv(x).mean((2, 3)))
            return self.fc(read[0] if isinstance(read, tuple) else read)

    torch.manual_seed(0)
    network, x = Reader().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    shrunk = shrink(network, x, ratio=0.5)
    assert len(shrunk.kept["conv"]) == 4
    torch.testing.assert_close(shrunk.network(x), masked(network, {"conv": shrunk.kept["conv"]})(x))
    again = rebuild(copy.deepcopy(network), record(network, shrunk.network))
    again.load_state_dict(shrunk.network.state_dict())
    assert torch.equal(again(x), shrunk.network(x))
