"""A 1×1 layer absorbed into what stands before it changes nothing: the law of `protege.surgery.absorb`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from protege.surgery import absorb
from protege.surgery.solving.absorb import folded, has_intercept, settle
from protege.surgery.solving.linear import linear_in, of_module, patches
from protege.surgery.tracing.calls import Weight

LIMITS = settings(max_examples=40, deadline=None, database=None)


def mixed(y, q, c, dim):
    """The explicit layer: every block of channels times its matrix, plus the intercept."""
    blocks, n, _ = q.shape
    y = y.movedim(dim, -1)
    parts = [y[..., b * n : (b + 1) * n] @ q[b] for b in range(blocks)]
    return (torch.cat(parts, -1) + c).movedim(-1, dim)


def unsettle(norm, generator):
    """A BatchNorm in the middle of its life, with negative and dead scales."""
    norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator, dtype=torch.float64))
    norm.running_var.copy_(torch.rand(norm.num_features, generator=generator, dtype=torch.float64) * 3)
    norm.running_var[0] = 0
    if norm.affine:
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
        norm.weight.data[-1] = 0


@LIMITS
@given(
    dims=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    bias=st.booleans(),
    norm=st.sampled_from([None, "affine", "plain"]),
    measured=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_convolutions(
    dims, groups, inputs, outputs, kernel, stride, padding, dilation, mode, bias, norm, measured, seed
):
    generator = torch.Generator().manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups, bias, mode
    ).double()
    for parameter in conv.parameters():
        nn.init.normal_(parameter, generator=generator)
    after = None
    if norm:
        kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        after = kind(groups * outputs, eps=1e-3, affine=norm == "affine").double().eval()
        unsettle(after, generator)
    x = torch.randn(2, groups * inputs, *(6,) * dims, generator=generator, dtype=torch.float64)
    q = torch.randn(groups, outputs, outputs, generator=generator, dtype=torch.float64)
    takes = bias or norm is not None
    c = torch.randn(groups * outputs, generator=generator, dtype=torch.float64) * takes

    def run(layer, norm):
        return norm(layer(x)) if norm else layer(x)

    with torch.no_grad():
        expected = mixed(run(conv, after), q, c, 1)
        rows = expected.movedim(1, -1).flatten(0, -2)
        statistics = (rows.mean(0), rows.var(0, correction=0)) if measured else None
        names = [(name, v.shape) for m in (conv, after) if m for name, v in m.state_dict().items()]
        absorb(conv, q, c if takes else None, after, statistics)
        torch.testing.assert_close(run(conv, after), expected, rtol=1e-9, atol=1e-9)
        assert names == [(name, v.shape) for m in (conv, after) if m for name, v in m.state_dict().items()]
        if norm == "affine" and measured:  # the statistics are those of what the norm gets, so training mode agrees
            living = rows.var(0, correction=0) > 1e-6
            training = copy.deepcopy(after).train()(conv(x))
            torch.testing.assert_close(training[:, living], expected[:, living], rtol=1e-6, atol=1e-6)


@LIMITS
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_linear(sizes, bias, norm, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(*sizes, bias=bias).double()
    after = nn.BatchNorm1d(sizes[1]).double().eval() if norm else None
    if after:
        unsettle(after, generator)
    shape = (7, sizes[0]) if norm else (2, 3, sizes[0])
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    q = torch.randn(1, sizes[1], sizes[1], generator=generator, dtype=torch.float64)
    c = torch.randn(sizes[1], generator=generator, dtype=torch.float64) * (bias or norm)
    with torch.no_grad():
        y = after(layer(x)) if after else layer(x)
        expected = mixed(y, q, c, -1)
        absorb(layer, q, c if bias or norm else None, after)
        found = after(layer(x)) if after else layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@LIMITS
@given(
    dims=st.sampled_from([0, 1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 4),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
    norm=st.sampled_from([None, "affine", "plain"]),
    room=st.sampled_from([1, 20, 100, 10**6]),
    seed=st.integers(0, 2**31),
)
def test_a_kernel_that_is_added(
    dims, groups, inputs, outputs, kernel, stride, padding, dilation, mode, bias, norm, room, seed
):
    """Patches times weight plus constant is layer and norm; what is added to both is added to their output."""
    generator = torch.Generator().manual_seed(seed)
    if dims == 0:
        groups, layer = 1, nn.Linear(inputs, outputs, bias).double()
    else:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
            *(groups * inputs, groups * outputs, kernel, 1 if padding == "same" else stride, padding),
            *(dilation, groups, bias, mode),
        ).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    after = None
    if norm:
        kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
        after = kind(groups * outputs, eps=1e-3, affine=norm == "affine").double().eval()
        unsettle(after, generator)
    x = torch.randn(8 if dims == 0 else 2, groups * inputs, *(6,) * dims, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = after(layer(x)) if after else layer(x)
        weight, constant = folded(of_module(layer), after)
        rows = (
            torch.cat(list(patches(of_module(layer), x, room))).unflatten(1, weight.shape[:2]).transpose(0, 1) @ weight
        )
        rows = rows.transpose(0, 1).flatten(1) + constant
        torch.testing.assert_close(rows, before.movedim(1, -1).flatten(0, -2), rtol=1e-9, atol=1e-9)

        delta = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        c = torch.randn(constant.shape, generator=generator, dtype=torch.float64) * has_intercept(
            of_module(layer), after
        )
        other = copy.deepcopy(layer)
        other.weight.copy_(delta.mT.reshape(layer.weight.shape))
        if bias:
            other.bias.zero_()
        expected = before + other(x) + c.view(-1, *[1] * dims)
        seen = expected.movedim(1, -1).flatten(0, -2)
        settle(of_module(layer), after, weight + delta, constant + c, (seen.mean(0), seen.var(0, correction=0)))
        found = after(layer(x)) if after else layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_identity_leaves_the_function_in_single_precision():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)
    x = torch.randn(4, 3, 8, 8)
    norm(conv(x))
    norm.eval()
    before = norm(conv(x))
    absorb(conv, torch.eye(2).expand(3, 2, 2), torch.zeros(6), norm)
    torch.testing.assert_close(norm(conv(x)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "q", "intercept"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), torch.ones(1, 4, 4), None),
        (nn.Conv2d(4, 4, 3, bias=False), torch.ones(1, 4, 4), torch.ones(4)),
        (nn.ConvTranspose2d(4, 4, 3), torch.ones(1, 4, 4), None),
    ],
)
def test_what_cannot_be_absorbed_is_refused(layer, q, intercept):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"absorb|outputs|intercept"):
        absorb(layer, q, intercept)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def known_of(*tensors):
    return {id(tensor): Weight(tensor, {"weight": tensor}) for tensor in tensors}


def test_what_treats_channels_apart_is_not_linear_in_its_weight():
    x, weight = torch.randn(4, 6), torch.randn(6, 6)
    assert linear_in(F.linear, (x, weight), {}, known_of(weight)).side == 0
    for call in (torch.mul, torch.add, lambda x, w: x @ w.T.flip(1), lambda x, w: x @ w.T.cumsum(1)):
        assert linear_in(call, (x, weight), {}, known_of(weight)) is None
    kernel = torch.randn(6, 1, 3, 3)  # of each input one output
    layer = linear_in(F.conv2d, (torch.randn(2, 6, 5, 5), kernel), {"groups": 6}, known_of(kernel))
    assert layer.blocks == 6
    alone = lambda x, w: F.conv2d(x, w, groups=6)  # noqa: E731
    assert linear_in(alone, (torch.randn(2, 6, 5, 5), kernel), {}, known_of(kernel)) is None


def test_whether_a_wide_layer_is_linear_takes_no_longer_than_the_layer():
    x, weight = torch.randn(2, 4000), torch.randn(4000, 4000)
    with FlopCounterMode(display=False) as counted:
        assert linear_in(F.linear, (x, weight), {}, known_of(weight)) is not None
    assert counted.get_total_flops() <= 10 * weight.numel() * 2 * len(x)
