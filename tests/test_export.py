"""Exports compute what the model computes, from raw pixels, and say how far they are off."""

import json

import pytest
import torch

from understudy import load_model
from understudy.errors import UserError
from understudy.exporting import export
from understudy.models import Model
from understudy.models.inputs import InputSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small trained network on digits."""
    from understudy import train

    out = tmp_path_factory.mktemp("trained") / "run"
    train("zoo:cnn_tiny", "digits", out=out, epochs=3, batch_size=64)
    return out / "student"


def test_onnx_takes_raw_pixels_in_batches_of_any_size(folder, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    result = export(folder, to="onnx", data="digits", out=tmp_path / "out")
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    raw = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        ours = load_model(folder)(raw)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": raw.numpy()})[0]), ours)
    assert result["difference"] < 1e-4
    assert result["metrics"]["exported"]["accuracy"] == pytest.approx(result["metrics"]["float"]["accuracy"], abs=0.003)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == result
    assert [one["role"] for one in result["networks"]] == ["student", "onnx"]
    assert "The student as ONNX is" in (tmp_path / "out" / "report.html").read_text()


def test_int8_stays_close_and_loads_again(folder, tmp_path):
    pytest.importorskip("torchao")
    result = export(folder, to="int8", data="digits", samples=50, out=tmp_path / "out")
    assert result["metrics"]["exported"]["accuracy"] > result["metrics"]["float"]["accuracy"] - 0.02
    assert 0 < result["difference"] < 0.1
    program = torch.export.load(tmp_path / "out" / "model_int8.pt2")
    assert any(value.dtype == torch.int8 for value in program.state_dict.values())
    assert not any(value.is_floating_point() and value.numel() > 16 for value in program.state_dict.values())
    raw = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        ours = load_model(folder)(raw)
    assert (program.module()(raw) - ours).abs().max() < 0.1 * ours.abs().max()


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("export to 'tflite' is unknown", {"to": "tflite"}),
        ("samples is 0", {"to": "onnx", "samples": 0}),
    ],
)
def test_bad_options_are_told(told, options, tmp_path):
    with pytest.raises(UserError, match=told):
        export("zoo:cnn_tiny", data="digits", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(UserError, match="extra 'quantize': install it with"):
        export("zoo:cnn_tiny", to="int8", data="digits", out=tmp_path / "out")


def test_int8_without_data_and_full_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.exporting._require", lambda *_: None)
    with pytest.raises(UserError, match="a few images to calibrate on: give --data"):
        export("zoo:cnn_tiny", to="int8", out=tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="not empty; expected a new folder: name another, or add --overwrite"):
        export("zoo:cnn_tiny", to="onnx", data="digits", out=tmp_path / "full")


class Branching(torch.nn.Module):
    def forward(self, x):
        x = x.mean((2, 3))
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_traced_is_told_and_nothing_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("understudy.exporting._require", lambda *_: None)
    model = Model(Branching(), InputSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(UserError, match="cannot be traced for export"):
        export(model, to="onnx", out=tmp_path / "out")
    assert "GraphModule" not in "".join(capfd.readouterr())
