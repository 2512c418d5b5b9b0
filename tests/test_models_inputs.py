"""Input specs: raw pixels become what the network was trained on, whatever their type, layout and size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from protege.errors import UserError
from protege.models import InputSpec, Model


def naive(raw: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """One image, one channel, one pixel at a time, in double precision, from the definition."""
    values = raw.double() / 255 if raw.dtype == torch.uint8 else raw.double()
    if values.shape[1] == 1 and spec.channels == 3:
        values = torch.cat([values] * 3, 1)
    elif values.shape[1] == 3 and spec.channels == 1:
        values = 0.299 * values[:, :1] + 0.587 * values[:, 1:2] + 0.114 * values[:, 2:]
    if spec.order == "bgr":
        values = torch.stack([values[:, 2], values[:, 1], values[:, 0]], 1)
    planes = [(values[:, c] - spec.mean[c]) / spec.std[c] for c in range(spec.channels)]
    return torch.stack(planes, 1)


@st.composite
def specs_and_images(draw):
    channels = draw(st.sampled_from([1, 3]))
    numbers = st.lists(st.floats(0.05, 1.0), min_size=channels, max_size=channels).map(tuple)
    order = draw(st.sampled_from(["rgb", "bgr"] if channels == 3 else ["rgb"]))
    spec = InputSpec(channels=channels, mean=draw(numbers), std=draw(numbers), order=order)
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 3])), *draw(st.tuples(*[st.integers(1, 9)] * 2)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if draw(st.booleans()):
        raw = raw.float() / 255
    if draw(st.booleans()):
        raw = raw.contiguous(memory_format=torch.channels_last)
    return spec, raw


@settings(max_examples=60, deadline=None)
@given(specs_and_images())
def test_agrees_with_the_definition(case):
    spec, raw = case
    result = spec(raw)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), naive(raw, spec), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("spec", [InputSpec(), InputSpec(order="bgr"), InputSpec(size=(12, 9))], ids=str)
def test_memory_layout_is_kept(spec, layout):
    raw = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8).contiguous(memory_format=layout)
    assert spec(raw).is_contiguous(memory_format=layout)


def test_layout_does_not_change_values():
    spec = InputSpec(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), size=(5, 7))
    raw = torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(spec(raw), spec(raw.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("size", [(8, 8), (40, 24)])
def test_resizing_is_pillows_antialiased_bilinear(size):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR), dtype=np.float32)
    raw = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    for images, tolerance in ((raw, 1.01), (raw.float() / 255, 1.01)):
        result = InputSpec(size=size)(images)[0].permute(1, 2, 0) * 255
        assert np.abs(result.numpy() - wanted).max() <= tolerance


def test_no_resizing_where_the_size_fits_or_is_free():
    raw = torch.randint(0, 256, (2, 3, 6, 5), dtype=torch.uint8)
    assert torch.equal(InputSpec(size=(6, 5))(raw), InputSpec()(raw))


def test_tokens_pass_untouched():
    tokens = torch.randint(0, 100, (2, 7))
    assert InputSpec(kind="tokens", channels=1)(tokens) is tokens


def test_gradient_flows_to_float_images_also_after_inference_mode():
    spec = InputSpec(mean=(0.31, 0.32, 0.33), std=(0.25, 0.5, 0.2))
    with torch.inference_mode():
        spec(torch.rand(1, 3, 4, 4))
    raw = torch.rand(1, 3, 4, 4, requires_grad=True)
    spec(raw).sum().backward()
    torch.testing.assert_close(raw.grad[0, :, 0, 0], torch.tensor([4.0, 2.0, 5.0]))


def test_autocast_does_not_lower_the_precision():
    spec, raw = InputSpec(channels=1), torch.rand(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spec(raw), spec(raw.clone()))
        assert spec(raw).dtype == torch.float32


def test_a_model_with_its_input_can_be_exported():
    model = Model(nn.Conv2d(3, 2, 1), InputSpec(mean=(0.5,) * 3, std=(0.2,) * 3)).eval()
    raw = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    wanted = model(raw)  # constants are kept from here on and must not enter the exported graph
    program = torch.export.export(model, (raw,))
    torch.testing.assert_close(program.module()(raw), wanted)


@given(specs_and_images())
@settings(max_examples=20, deadline=None)
def test_to_dict_and_back(case):
    spec, _ = case
    assert InputSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"std": [0.2, 0.0, 0.2]}, "not above 0"),
        ({"mean": [0.5, 0.5]}, "2 values for 3 channels"),
        ({"mean": [0.5, 0.5, float("nan")]}, "finite"),
        ({"std": "wide"}, "wide"),
        ({"size": [32]}, "[height, width]"),
        ({"size": 32}, "32"),
        ({"channels": 0}, "channels 0"),
        ({"kind": "sound"}, "sound"),
        ({"order": "gbr"}, "gbr"),
        ({"order": "bgr", "channels": 1}, "3 channels"),
        ({"sizes": [32, 32]}, "sizes"),
    ],
)
def test_specs_that_cannot_be_meant(values, told):
    with pytest.raises(UserError, match=r".") as caught:
        InputSpec.from_dict(values)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (torch.rand(3, 8, 8), "shape [3, 8, 8]"),
        (torch.rand(1, 4, 8, 8), "4 channels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "torch.int64"),
    ],
)
def test_images_that_do_not_fit(raw, told):
    with pytest.raises(UserError, match=r".") as caught:
        InputSpec()(raw)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "remedy"),
    [
        (torch.rand(2, 3, 8, 8) * 255, "divide them by 255, or give uint8"),
        (torch.rand(2, 3, 8, 8) * 4 - 2, "leave out Normalize"),
        (torch.rand(2, 3, 8, 8) * 1.2 - 0.1, r"limit them with .clamp\(0, 1\)"),
        (torch.rand(2, 3, 8, 8).half() * 255, "divide them by 255"),
        (torch.full((1, 3, 2, 2), torch.nan), "not finite"),
    ],
)
def test_floats_beyond_0_to_1_are_noticed(raw, remedy):
    with pytest.raises(UserError, match=remedy):
        InputSpec()(raw)


def test_floats_beside_0_to_1_by_rounding_are_not():
    raw = torch.tensor([1.0000002, -1e-7, 1.0, 0.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(InputSpec(channels=1)(raw), raw)
    assert InputSpec()(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


def test_traced_images_are_not_looked_at():
    model = Model(nn.Conv2d(3, 2, 1), InputSpec()).eval()
    raw = torch.rand(2, 3, 4, 4)
    for changed in (torch.export.export(model, (raw,)).module(), torch.compile(model, backend="eager", fullgraph=True)):
        torch.testing.assert_close(changed(raw), model(raw))
        changed(raw * 255)


def test_ranges_of_files_travel():
    spec = InputSpec(ranges=(("float", -1, 1), ("integer", 0, 4095)))
    assert InputSpec.from_dict(spec.to_dict()) == spec
    assert "ranges" not in InputSpec().to_dict()
    for wrong in ([["integer", 5, 5]], [["bits", 0, 1]], ["integer"], [["float", 0, "1"]]):
        with pytest.raises(UserError, match=r"input range .* should be a kind"):
            InputSpec.from_dict({"ranges": wrong})
