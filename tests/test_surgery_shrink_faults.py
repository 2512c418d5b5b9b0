"""Pruning is right or it is not done: groups of channels that the graph gets wrong stay whole and are named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from protege.errors import UserError
from protege.surgery import rebuild, record, shrink
from protege.surgery.pruning.removal import CannotRemove, Site, remove
from protege.torch_utils import copy_network


class Net(nn.Module):
    """Layers by name, and a forward of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.runs = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.runs(self, x)


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def gate(z):
    first, second = z.chunk(2, 1)
    return first * second


def csp(m, x):
    u, v = m.a(x).chunk(2, 1)
    return m.o(m.safe(m.b(torch.cat([u, v, m.m(v)], 1)))).mean((2, 3))


def shuffled(z):
    return z.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def pooled(z, *sides):
    return torch.cat([F.adaptive_avg_pool2d(z, side).flatten(1) for side in sides], 1)


def mixed_tokens(m, x):
    x = m.i(x.flatten(2)[..., :6].transpose(1, 2))
    return m.o(m.h((x + m.t(x.transpose(1, 2)).transpose(1, 2)).mean(1)).relu())


def maps(forward, *whole, **layers):
    """A network of 8 maps `m.o`'s average gives four outputs of, and the layers that must stay whole."""
    layers = {"a": conv(3, 8), "b": conv(8, 8), **layers, "o": conv(8, 4, 1)}
    return Net(lambda m, x: m.o(forward(m, x)).mean((2, 3)), **layers), set(whole)


def rows(forward, inputs, *whole, **layers):
    """The same of a network whose last layer is linear."""
    layers = {"a": conv(3, 8), "b": conv(8, 8), **layers, "o": nn.Linear(inputs, 4)}
    return Net(lambda m, x: m.o(forward(m, x)), **layers), set(whole)


def inner(m, x):
    return m.b(m.a(x).relu())


def networks():
    """By what they do with their channels; input [B, 3, 16, 16]."""
    return {
        "flattened": rows(lambda m, x: F.max_pool2d(inner(m, x), 4).flatten(1), 128),
        "channels last": rows(lambda m, x: F.max_pool2d(inner(m, x), 4).permute(0, 2, 3, 1).flatten(1), 128),
        "pyramid": rows(lambda m, x: pooled(inner(m, x), 1, 2), 40),
        "gram": rows(lambda m, x: (lambda z: z @ z.mT)(inner(m, x).flatten(2)).flatten(1), 64, "b"),
        "glu": maps(lambda m, x: F.glu(inner(m, x), 1), b=conv(8, 16)),
        "halves multiplied": maps(lambda m, x: gate(inner(m, x)), b=conv(8, 16)),
        "three parts": maps(
            lambda m, x: (lambda u, v, w: u * v + w)(*inner(m, x).split(8, 1)), "b", b=conv(8, 24)
        ),
        "channel shuffle": maps(lambda m, x: m.b(shuffled(m.a(x).relu()))),
        "pixel shuffle": maps(lambda m, x: F.pixel_shuffle(inner(m, x), 2), b=conv(8, 32)),
        "maxout": maps(lambda m, x: inner(m, x).unflatten(1, (8, 2)).amax(2), "b", b=conv(8, 16)),
        "flip": maps(lambda m, x: inner(m, x).flip(1)),
        "sigmoid, of which zero is a half": maps(lambda m, x: inner(m, x).sigmoid(), "b"),
        "called twice": maps(lambda m, x: m.b(inner(m, x).relu())),
        "view to maps": maps(
            lambda m, x: m.c(m.b(m.a(x.flatten(1)).relu()).view(-1, 8, 4, 4)),
            "b",
            a=nn.Linear(768, 8),
            b=nn.Linear(8, 128),
            c=conv(8, 8),
        ),
        "padded shortcut": rows(
            lambda m, x: (m.c(m.b(m.a(x)).relu()) + F.pad(m.a(x), (0, 0, 0, 0, 4, 4))).mean((2, 3)),
            16, c=conv(8, 16),
        ),
        "recurrent": rows(
            lambda m, x: m.l(inner(m, x).mean(2).transpose(1, 2))[0][:, -1], 6, l=nn.GRU(8, 6, batch_first=True)
        ),
        "tokens": (
            Net(mixed_tokens, i=nn.Linear(3, 16), t=nn.Linear(6, 6), h=nn.Linear(16, 8), o=nn.Linear(8, 5)),
            {"t"},
        ),
        "one half goes on": (
            Net(csp, a=conv(3, 16), m=conv(8, 8), b=conv(24, 8), safe=conv(8, 4), o=conv(4, 2)),
            None,  # either way, if it is right
        ),
    }  # fmt: skip


def zeroed(network, kept):
    """The original with hooks that make what its layers lost zeros, and what a norm right behind them makes of it."""
    network = copy.deepcopy(network)
    last = []

    def layer(name):
        def hook(module, _, y):
            dim = -1 if isinstance(module, nn.Linear) else 1
            gone = torch.tensor(sorted(set(range(y.shape[dim])) - set(kept[name])), dtype=torch.long)
            last[:] = [y.shape, dim, gone]
            return y.index_fill(dim, gone, 0)

        return hook

    def norm(_m, _i, y):
        return y.index_fill(last[1], last[2], 0) if last and last[0] == y.shape else y

    for name, module in network.named_modules():
        if name == "t":  # mixes tokens [B, channels, tokens] and leaves the channels apart, but for its bias
            gone = torch.tensor(sorted(set(range(16)) - set(kept["i"])), dtype=torch.long)
            module.register_forward_hook(lambda _m, _i, y, gone=gone: y.index_fill(1, gone, 0))
        elif name in kept:
            module.register_forward_hook(layer(name))
        elif isinstance(module, _NormBase):
            module.register_forward_hook(norm)
    return network


@pytest.mark.parametrize("name", networks())
def test_what_is_returned_is_the_original_with_zeros(name):
    torch.manual_seed(0)
    network, whole = networks()[name]
    network.double().eval()
    x, other = (torch.randn(count, 3, 16, 16, dtype=torch.float64) for count in (2, 5))
    shrunk = shrink(network, x, ratio=0.5)
    torch.testing.assert_close(shrunk.network(other), zeroed(network, shrunk.kept)(other), rtol=0, atol=1e-9)
    assert sum(p.numel() for p in shrunk.network.parameters()) < sum(p.numel() for p in network.parameters())
    thin = {n for n, m in network.named_modules() if n in shrunk.kept and len(shrunk.kept[n]) < len(m.weight)}
    if whole is not None:
        assert {layer for part in shrunk.left_out for layer in part.layers} == whole
        assert thin == set(shrunk.kept) - whole - {"o"}
        assert all(part.why for part in shrunk.left_out)


def test_an_innocent_layer_can_be_named_where_others_cannot_be_followed():
    torch.manual_seed(0)
    network = networks()["sigmoid, of which zero is a half"][0]
    shrunk = shrink(network, torch.randn(2, 3, 16, 16), ratio=0.5, layers=["a"])
    assert shrunk.left_out == ()
    assert {name: len(kept) for name, kept in shrunk.kept.items()} == {"a": 4, "b": 8, "o": 4}
    with pytest.raises(UserError, match=r"removed there: 'b' \(without them 'o' computes .*name other layers"):
        shrink(network, torch.randn(2, 3, 16, 16), ratio=0.5, layers=["b"])
    with pytest.raises(UserError, match=r"removed there: 't' \(.* takes what is no channel .*name other layers\.$"):
        shrink(networks()["tokens"][0], torch.randn(2, 3, 16, 16), ratio=0.5, layers=["t"])


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_a_target_is_met_with_the_layers_that_can_be_thinned(share):
    from protege.models import count_macs

    torch.manual_seed(0)
    network = rows(lambda m, x: inner(m, x).sigmoid().flatten(1), 2048, "b", a=conv(3, 64), b=conv(64, 8))[0]
    x = torch.randn(2, 3, 16, 16)
    shrunk = shrink(network, x, macs=share)
    assert abs(count_macs(shrunk.network, x) / count_macs(network, x) - share) <= 0.02
    with pytest.raises(UserError, match=r"macs = 0\.4 cannot be met.*left whole: 'b'"):
        shrink(rows(lambda m, x: inner(m, x).sigmoid().flatten(1), 2048, a=conv(3, 2), b=conv(2, 8))[0], x, macs=0.4)


@pytest.mark.parametrize("faded", [0.0, 1e-9])
def test_a_fault_that_the_weights_hide_is_found(faded):
    class Faded(nn.Module):
        """A branch that counts for nothing yet, as at the start of ConvNeXt and others."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(faded))
            self.a, self.b, self.c, self.o = conv(3, 8), conv(8, 8), conv(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x).relu()
            return self.o((x + self.scale * self.c(self.b(x).sigmoid())).mean((2, 3)))

    torch.manual_seed(0)
    shrunk = shrink(Faded().double(), torch.randn(2, 3, 8, 8).double(), ratio=0.5)
    assert [part.layers for part in shrunk.left_out] == [("b",)]


def test_a_fault_that_only_the_trained_weights_reach_is_found():
    class Clipped(nn.Module):
        """What the mean over channels has beyond 20 is taken off."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.o = conv(3, 8), conv(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x).relu()
            return self.o(self.b(x - (x.mean(1, keepdim=True) - 20).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    network, example = Clipped().double(), torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        network.a.weight *= 200
    assert [part.layers for part in shrink(network, example, ratio=0.5).left_out] == [("a",)]


def test_norms_that_mix_channels_are_compared_over_those_that_are_left():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.o = conv(3, 60), conv(60, 12), nn.Linear(12, 4)
            self.n, self.g = nn.LayerNorm(60), nn.GroupNorm(3, 12)

        def forward(self, x):
            x = self.n(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.o(self.g(self.b(x.relu())).mean((2, 3)))

    torch.manual_seed(0)
    network, x = Mixing().double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for norm in (network.n, network.g):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    shrunk = shrink(network, x, ratio=0.9, layers=["a"])
    kept = shrunk.kept["a"]
    assert len(kept) == 6
    y = F.conv2d(x, network.a.weight[kept], network.a.bias[kept], padding=1).movedim(1, -1)
    y = F.layer_norm(y, (6,), network.n.weight[kept], network.n.bias[kept]).movedim(-1, 1).relu()
    y = network.g(F.conv2d(y, network.b.weight[:, kept], network.b.bias, padding=1))
    torch.testing.assert_close(shrunk.network(x), network.o(y.mean((2, 3))), rtol=0, atol=1e-9)
    shrunk = shrink(network, x, ratio=0.5)
    assert shrunk.left_out == ()
    assert len(shrunk.kept["b"]) == 6


def test_a_norm_that_the_graph_does_not_know_is_pruned_and_saved_by_its_sizes():
    torch.manual_seed(0)
    network = Net(
        lambda m, x: m.o(m.n(m.a(x.flatten(2).mT)).relu()).mean(1), a=nn.Linear(3, 60), n=nn.RMSNorm(60),
        o=nn.Linear(60, 4),
    ).double()  # fmt: skip
    nn.init.normal_(network.n.weight)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    shrunk = shrink(network, x, ratio=0.5)
    kept, part = shrunk.kept["a"], shrunk.network
    assert len(kept) == 30
    y = F.linear(x.flatten(2).mT, network.a.weight[kept], network.a.bias[kept])
    y = F.rms_norm(y, (30,), network.n.weight[kept]).relu()
    expected = F.linear(y, network.o.weight[:, kept], network.o.bias).mean(1)
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-12)
    again = rebuild(copy_network(network), record(network, part))
    again.load_state_dict(part.state_dict())
    assert torch.equal(again(x), part(x))


def test_weights_that_layers_share_stay_shared_or_whole():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.b, self.c, self.free, self.o = (
                *(conv(8 if n else 3, 8, 1) for n in range(4)),
                conv(8, 2, 1),
            )
            self.c.weight = self.b.weight

        def forward(self, x):
            x = self.c(self.b(self.first(x).relu()).relu()).relu()
            return self.o(self.free(x)).mean((2, 3))

    network = Tied()
    shrunk = shrink(network, torch.randn(2, 3, 8, 8), ratio=0.5)
    assert shrunk.left_out == ()
    assert [len(shrunk.kept[name]) for name in ("first", "b", "c")] == [4, 4, 4]
    assert shrunk.network.c.weight is shrunk.network.b.weight
    assert len(shrunk.kept["free"]) == 4
    remove(network, {Site("b", "out"): [1], Site("c", "out"): [1]})
    assert network.c.weight is network.b.weight
    assert network.b.weight.shape == (7, 8, 1, 1)
    with pytest.raises(CannotRemove, match="one and the same"):
        remove(network, {Site("b", "out"): [1]})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm,
                                  nn.utils.parametrizations.spectral_norm])  # fmt: skip
def test_weights_that_are_computed(norm):
    torch.manual_seed(0)
    network = Net(
        lambda m, x: m.o(m.c(m.b(m.a(x).relu()).relu()).relu()).mean((2, 3)),
        a=conv(3, 8), b=norm(conv(8, 8)), c=conv(8, 8), o=conv(8, 4, 1),
    ).train()  # fmt: skip
    network(torch.randn(2, 3, 8, 8))
    network.eval()
    shrunk = shrink(network, torch.randn(2, 3, 8, 8), ratio=0.5)
    assert len(shrunk.kept["c"]) == 4
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(shrunk.network(x), zeroed(copy_network(network), shrunk.kept)(x))


def test_only_the_outputs_of_the_forward_for_the_example_count():
    class Optional(nn.Module):
        """Its second argument is not the second sample."""

        def __init__(self):
            super().__init__()
            self.a, self.o = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x, mask=None):
            return {"logits": self.o(self.a(x).relu()) if mask is None else x, "none": None, "input": x}

    network = Optional()
    assert len(shrink(network, torch.randn(2, 6), ratio=0.5).kept["a"]) == 4


def test_a_network_without_numbers_is_refused():
    network = Net(lambda m, x: m.o(m.a(x)).mean((2, 3)) * float("nan"), a=conv(3, 8), o=conv(8, 4))
    with pytest.raises(UserError, match="no finite numbers"):
        shrink(network, torch.randn(2, 3, 8, 8), ratio=0.5)


class Remembering(nn.Module):
    """Keeps what it makes of its weights until it is trained on, as LeViT does of its biases."""

    def __init__(self):
        super().__init__()
        self.a, self.o, self.scale, self.kept = conv(3, 8), conv(8, 4, 1), nn.Parameter(torch.rand(8, 1, 1)), {}

    def train(self, mode=True):
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        return self.o(self.a(x) * self.kept.setdefault("scale", self.scale.exp())).mean((2, 3))


def test_what_a_network_remembers_of_its_weights_is_forgotten():
    torch.manual_seed(0)
    network, x = Remembering().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        network(x)
    shrunk = shrink(network, x, ratio=0.5)
    assert len(shrunk.kept["a"]) == 4
    torch.testing.assert_close(shrunk.network(x), zeroed(network, shrunk.kept)(x), rtol=0, atol=1e-9)


def test_code_that_counts_channels_is_followed():
    """Sizes from attributes, single and in rows, and from other tensors; depthwise layers that make several of one."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.sizes, self.shape = 24, [8, 16], (8, 1, 1)
            self.a, self.d, self.o = conv(3, 24), conv(8, 16, groups=8), conv(16, 4, 1)
            self.b, self.gamma = conv(16, 8), nn.Parameter(torch.rand(8))

        def forward(self, x):
            one, two = self.a(x).relu().split(self.sizes, 1)
            y = one + self.b(two) * self.gamma.view(self.shape)
            y = y.view(len(y), y.shape[1] // 1, -1).view(one.shape)
            return self.o(self.d(y)).mean((2, 3))

    torch.manual_seed(0)
    network, x = Counting().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    shrunk = shrink(network, x, ratio=0.5)
    assert shrunk.left_out == ()
    assert {name: len(kept) for name, kept in shrunk.kept.items()} == {"a": 12, "d": 8, "o": 4, "b": 4}
    torch.testing.assert_close(shrunk.network(x), zeroed(network, shrunk.kept)(x), rtol=0, atol=1e-9)
    again = rebuild(copy_network(network), record(network, shrunk.network))
    again.load_state_dict(shrunk.network.state_dict())
    assert torch.equal(again(x), shrunk.network(x))


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_a_function_that_makes_something_of_zero_is_seen_at_any_size(size):
    torch.manual_seed(0)
    network = maps(lambda m, x: x.repeat(1, 3, 1, 1)[:, :8] + m.b(m.a(x).exp()))[0].double()
    with pytest.raises(UserError, match=r"removed there: 'a' \(without them"):
        shrink(network, size * torch.randn(2, 3, 16, 16).double(), ratio=0.5, layers=["a"])


def test_a_scale_made_of_several_tensors_is_cut_with_its_channels():
    class Frozen(nn.Module):
        """A BatchNorm of buffers alone, as detection networks have it."""

        def __init__(self, count):
            super().__init__()
            for name in ("weight", "bias", "mean", "var"):
                self.register_buffer(name, torch.rand(count) + 0.5)

        def forward(self, x):
            weight, bias, mean, var = (b.view(1, -1, 1, 1) for b in (self.weight, self.bias, self.mean, self.var))
            scale = weight * (var + 1e-5).rsqrt()
            return x * scale + (bias - mean * scale)

    torch.manual_seed(0)
    network = Net(
        lambda m, x: m.o(m.n(m.a(x)).relu()).mean((2, 3)), a=conv(3, 8), n=Frozen(8), o=conv(8, 4, 1)
    ).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    shrunk = shrink(network, x, ratio=0.5)
    kept = shrunk.kept["a"]
    assert len(kept) == 4
    reference = copy.deepcopy(network)
    gone = sorted(set(range(8)) - set(kept))
    with torch.no_grad():
        reference.o.weight[:, gone] = 0
    torch.testing.assert_close(shrunk.network(x), reference(x), rtol=0, atol=1e-12)
    again = rebuild(copy_network(network), record(network, shrunk.network))
    again.load_state_dict(shrunk.network.state_dict())
    assert torch.equal(again(x), shrunk.network(x))
