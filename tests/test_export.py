"""Exports compute what the model computes, from raw pixels, and say how far they are off."""

import json

import numpy as np
import pytest
import torch
from forks import protege
from PIL import Image
from torch import nn

from protege import load_model
from protege.data import CLEAN, Augment, batches, load_data
from protege.errors import UserError
from protege.models import Model, count_macs
from protege.models.inputs import InputSpec
from protege.run.exporting import _slower, export
from protege.run.formats import opened
from protege.run.shrinking import shrink


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small trained network on digits."""
    from protege import train

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
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    assert session.get_outputs()[0].shape == ["batch", 10]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == result["classes"] == [str(n) for n in range(10)]
    assert json.loads(told["input"]) == result["input"]
    given = load_model(folder).input
    assert result["input"]["mean"] == list(given.mean)
    assert result["input"]["std"] == list(given.std)
    assert result["compared"]["images"] == 360
    assert result["compared"]["agreement"] == 1
    assert result["bytes"]["float"] == (folder / "model.safetensors").stat().st_size


def pairs_of(weight, axis):
    """The largest sum of two weights of one sign that are multiplied one after the other, of a Gemm or convolution."""
    rows = np.moveaxis(weight.astype(int), axis, 0) if weight.ndim == 2 else np.moveaxis(weight.astype(int), 1, -1)
    rows = rows.reshape(len(rows), -1)
    most = 0
    for row in rows:
        for n in range(0, len(row) - 1, 2):
            a, b = row[n], row[n + 1]
            most = max(most, a + b, -a - b)
    return most


def test_int8_onnx_decides_as_the_network_on_other_images_and_overflows_nowhere(folder, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    result = export(folder, to="onnx-int8", data="digits", samples=100, out=tmp_path / "out")
    file = tmp_path / "out" / "model_int8.onnx"
    model = onnx.load(file)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    layers = [w for w in weights.values() if w.dtype == np.int8 and w.ndim >= 2]
    assert len(layers) == 3
    assert all(np.abs(w.astype(int)).max() > 100 for w in layers), "8 bits, not 7"
    assert all(pairs_of(w, 0) <= 128 for w in layers)
    scales = [w for name, w in weights.items() if "scale" in name and w.ndim == 1]
    assert len(scales) >= 3, "weights are quantised by channel"
    test = load_data("digits").test
    raw = next(batches(test, [torch.arange(300)], CLEAN, Augment())).inputs.contiguous()
    with torch.no_grad():
        ours = load_model(folder)(raw)
    outputs = []
    for level in (runtime.GraphOptimizationLevel.ORT_ENABLE_ALL, runtime.GraphOptimizationLevel.ORT_DISABLE_ALL):
        options = runtime.SessionOptions()
        options.graph_optimization_level = level
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
        outputs.append(torch.from_numpy(session.run(None, {"images": raw.numpy()})[0]))
        one = session.run(None, {"images": raw[:1].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(one), outputs[-1][:1])
    assert (outputs[0] - outputs[1]).abs().max() < 0.03 * ours.abs().max(), "kernels with int8 are the file's numbers"
    agreement = (outputs[0].argmax(1) == ours.argmax(1)).float().mean()
    assert agreement > 0.98
    assert torch.corrcoef(torch.stack([ours.flatten(), outputs[0].flatten()]))[0, 1] > 0.99
    assert result["compared"]["agreement"] > 0.98
    assert result["compared"]["unseen"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["input"]) == result["input"]
    assert [row["role"] for row in result["networks"]] == ["student", "float", "onnx-int8"]
    assert result["networks"][-1]["bytes"] == result["bytes"]["exported"] == file.stat().st_size


def unlabelled(folder, count, size=12):
    folder.mkdir()
    noise = torch.Generator().manual_seed(3)
    for number in range(count):
        pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=noise).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"images:{folder}"


@pytest.mark.parametrize("to", ["onnx-int8", "int8"])
def test_images_are_counted_and_those_without_labels_compare(to, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torchao")
    data = unlabelled(tmp_path / "photos", 20)
    model = Model(Mixing(nn.Identity(), 3, 3), InputSpec(channels=3, size=(12, 12)), classes=["cat", "dog", "eel"])
    result = export(model, to=to, data=data, out=tmp_path / "out")  # 200 were asked for
    assert result["samples"] == 20
    assert result["classes"] == ["cat", "dog", "eel"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "20 images" in page
    assert "200 images" not in page
    assert "cat, dog, eel" in page
    assert result["compared"]["images"] == 20
    assert not result["compared"]["unseen"]
    if to == "int8":
        return
    result = export(model, to=to, data=data, samples=8, out=tmp_path / "out", overwrite=True)
    assert result["samples"] == 8
    assert result["compared"]["images"] == 12
    assert result["compared"]["unseen"]
    raw = torch.stack([torch.from_numpy(np.array(Image.open(tmp_path / "photos" / f"{n}.png"))) for n in range(20)])
    raw = raw.permute(0, 3, 1, 2).contiguous()
    file = opened(tmp_path / "out" / result["file"])
    with torch.no_grad():
        ours, theirs = model.eval()(raw), file(raw)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.97


def test_layers_that_cost_decisions_stay_in_floating_point(tmp_path, monkeypatch):
    """One channel of the first layer is a thousand times as large, and the next layer takes the sum of the others."""
    pytest.importorskip("onnxruntime")
    first, last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        first.weight[0] *= 3000
        last.weight[:, 0] /= 3000
    features = nn.Sequential(first, last, nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
    decide = nn.Linear(64, 10)
    model = Model(nn.Sequential(features, decide), InputSpec(channels=1, size=(8, 8)))
    raw = next(batches(load_data("digits").train, [torch.arange(200)], CLEAN, Augment())).inputs
    with torch.no_grad():
        decide.bias -= model(raw).mean(0)  # so that decisions differ from image to image
    result = export(model, to="onnx-int8", data="digits", samples=50, out=tmp_path / "out")
    assert 1 <= len(result["float_layers"]) <= 2
    assert result["compared"]["agreement"] > 0.9
    monkeypatch.setattr("protege.run.formats.onnx_int8._enough", lambda _: True)
    plain = export(model, to="onnx-int8", data="digits", samples=50, out=tmp_path / "plain")
    assert plain["float_layers"] == []
    assert plain["compared"]["error"] > 3 * result["compared"]["error"]


@pytest.mark.parametrize(
    ("to", "way"), [("onnx-int8", "export to onnx"), ("int8", "compile it"), ("onnx", ""), ("int8, compiled", "")]
)
def test_int8_that_is_slower_here_says_so_with_the_faster_way(to, way):
    """Against the same runtime in floating point, where there is one; a compiled program counts as it runs compiled."""
    slow = [{"batch": 1, "milliseconds": 3.0}, {"batch": 64, "milliseconds": 90.0}]
    quick = [{"batch": 1, "milliseconds": 2.0}, {"batch": 64, "milliseconds": 90.0}]
    rows = [{"role": "student", "speed": quick}, {"role": to.partition(",")[0], "speed": slow}]
    if to == "onnx-int8":  # slower than the float file, though quicker than the network in torch
        rows[0]["speed"] = [{**time, "milliseconds": 500.0} for time in quick]
        rows.insert(1, {"role": "float", "speed": quick})
    if to == "int8, compiled":
        rows.append({"role": to, "speed": quick})
    said = _slower({"to": to.partition(",")[0], "threads": 1, "networks": rows})
    assert way in said
    assert bool(said) == bool(way)
    assert not said or "3 ms against 2 ms at batch 1, on 1 thread" in said


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


def test_the_size_is_that_of_the_images_as_a_run_sees_them(tmp_path):
    pytest.importorskip("onnxruntime")
    for number in range(12):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(place / f"{number}.png")
    data = f"images:{tmp_path / 'photos'}"
    given = load_model("zoo:cnn_tiny?channels=3", num_classes=2).train()
    found = export(given, to="onnx", data=data, image_size=12, out=tmp_path / "out")
    assert found["input"]["shape"] == ["batch", 3, 12, 12]
    assert given.training, "the caller's own network stays as it is"
    shrunk = shrink(given, ratio=0.5, data=data, image_size=12, out=tmp_path / "half")
    macs = json.loads((tmp_path / "half" / "shrink.json").read_text())["after"]["macs"]
    assert macs == count_macs(shrunk, raw(12)) > count_macs(shrunk, raw(8))
    with pytest.raises(UserError, match="image_size = 12 is given without data"):
        export(given, to="onnx", image_size=12, out=tmp_path / "none")


def raw(side):
    return torch.zeros(1, 3, side, side, dtype=torch.uint8)


def test_only_what_the_command_made_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("protege.run.exporting.require", lambda *_: None)
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(UserError, match=r"would replace 'model.onnx' .* no export.json of an export beside it"):
        export("zoo:cnn_tiny", to="onnx", data="digits", out=tmp_path, overwrite=True)
    model = load_model("zoo:cnn_tiny", num_classes=10)
    model.save(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"would replace 'config.json' .* no shrink.json of a shrunk model beside it"):
        shrink("zoo:cnn_tiny", ratio=0.5, data="digits", out=tmp_path / "teacher", overwrite=True)
    for _ in range(2):
        shrink("zoo:cnn_tiny", ratio=0.5, data="digits", out=tmp_path / "half", overwrite=True)


def test_a_file_that_computes_something_else_replaces_nothing(folder, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    export(folder, to="onnx", data="digits", out=tmp_path / "out")
    before = {item.name: item.read_bytes() for item in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("protege.run.exporting._difference", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"differ by 5.0e-01"):
        export(folder, to="onnx", data="digits", out=tmp_path / "out", overwrite=True)
    assert {item.name: item.read_bytes() for item in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("export to 'tflite' is unknown", {"to": "tflite"}),
        ("samples = 0 does not fit", {"to": "onnx", "samples": 0}),
    ],
)
def test_bad_options_are_told(told, options, tmp_path):
    with pytest.raises(UserError, match=told):
        export("zoo:cnn_tiny", data="digits", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [
        ("onnx", "onnxscript", "onnx"),
        ("onnx-int8", "onnxruntime", "onnx"),
        ("int8", "torchao", "quantize"),
        ("litert", "litert_torch", "litert"),
    ],
)
def test_a_missing_extra_is_named(to, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"{package}' is missing; expected the extra '{extra}': install it with"):
        export("zoo:cnn_tiny", to=to, data="digits", out=tmp_path / "out")
    command = protege("export", "--model", "zoo:cnn_tiny", "--data", "digits", "--to", to, "--out", tmp_path / "out")
    assert command.wait() == 2
    assert f"protege[{extra}]" in command.stderr
    assert not (tmp_path / "out").exists()


def test_int8_without_data_and_full_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("protege.run.exporting.require", lambda *_: None)
    for to in ("int8", "onnx-int8"):
        with pytest.raises(UserError, match=f"export to {to} got no data; .* a few images to calibrate on: give data="):
            export("zoo:cnn_tiny", to=to, out=tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="not empty; expected a new folder: name another, or add overwrite=True"):
        export("zoo:cnn_tiny", to="onnx", data="digits", out=tmp_path / "full")


class Branching(torch.nn.Module):
    def forward(self, x):
        x = x.mean((2, 3))
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_traced_is_told_and_nothing_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("protege.run.exporting.require", lambda *_: None)
    model = Model(Branching(), InputSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(UserError, match="cannot be traced for export"):
        export(model, to="onnx", out=tmp_path / "out")
    assert "GraphModule" not in "".join(capfd.readouterr())


class Mixing(nn.Module):
    """Patches of digits, mixed by some layer."""

    def __init__(self, mix, channels=1, classes=10):
        super().__init__()
        self.patches, self.mix, self.out = nn.Conv2d(channels, 16, 2, 2), mix, nn.Linear(16, classes)

    def forward(self, x):
        mixed = self.mix(self.patches(x).flatten(2).transpose(1, 2))
        return self.out(mixed.mean(1))


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x.mT @ x)[0]


def attention():
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("make", [attention, lambda: nn.TransformerEncoder(attention(), 1)], ids=["layer", "encoder"])
def test_attention_with_a_fast_path_is_exported(make, fast, tmp_path):
    pytest.importorskip("onnxruntime")
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        model = Model(Mixing(make()), InputSpec(channels=1, size=(8, 8)))
        assert export(model, to="onnx", out=tmp_path / "out")["difference"] < 1e-5
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"the operation aten\._linalg_svd has no counterpart"):
        export(Model(Mixing(Svd()), InputSpec(channels=1, size=(8, 8))), to="onnx", out=tmp_path / "out")
