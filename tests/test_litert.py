"""LiteRT files give what the model gives, on bytes of pixels. In an environment of its own: `make test-litert`."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from protege import export, load_model
from protege.errors import UserError
from protege.models import Model
from protege.models.inputs import InputSpec
from protege.run.formats import opened

pytest.importorskip("litert_torch")


class Residual(nn.Module):
    """As people write them: depthwise, squeeze and excitation, a shortcut, hard swish."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.depth(x) * self.gate(x)
        return self.head(x.mean((2, 3)))


class Scenes(nn.Module):
    """A map of classes for each pixel, skip connections and upsampling."""

    def __init__(self):
        super().__init__()
        self.down, self.mid, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(11, 4, 1)

    def forward(self, x):
        low = torch.relu(self.mid(torch.relu(self.down(x))))
        return self.out(torch.cat([x, nn.functional.interpolate(low, size=x.shape[-2:], mode="bilinear")], 1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


SPEC = InputSpec(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("make", [Residual, Scenes, Tokens])
def test_a_file_for_phones_gives_what_the_model_gives(make, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    torch.manual_seed(0)
    task = "segmentation" if make is Scenes else "classification"
    model = Model(make(), SPEC, classes=["a", "b", "c", "d", "e"][: 4 if make is Scenes else 5], task=task).eval()
    result = export(model, to="litert", out=tmp_path / "out")
    assert result["difference"] < 1e-4
    assert result["input"]["layout"] == "NHWC"
    assert result["input"]["shape"] == [1, 32, 32, 3]
    assert result["input"]["mean"] == [0.5, 0.4, 0.3]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["classes"] == list(model.classes)
    runtime = Interpreter(str(tmp_path / "out" / "model.tflite"))
    runtime.allocate_tensors()
    (given,), (gives,) = runtime.get_input_details(), runtime.get_output_details()
    assert given["dtype"] == np.uint8
    assert list(given["shape"]) == [1, 32, 32, 3]
    raw = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for image in raw:
        runtime.set_tensor(given["index"], image.permute(1, 2, 0)[None].contiguous().numpy())
        runtime.invoke()
        with torch.no_grad():
            ours = model(image[None])
        torch.testing.assert_close(torch.from_numpy(runtime.get_tensor(gives["index"])), ours, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(opened(tmp_path / "out" / "model.tflite")(raw), model(raw), atol=1e-4, rtol=1e-4)


def test_images_compare_it_and_one_at_a_time_is_timed(tmp_path):
    model = load_model("zoo:cnn_tiny", num_classes=10)
    result = export(model, to="litert", data="digits", out=tmp_path / "out")
    assert result["compared"]["images"] == 360
    assert result["compared"]["agreement"] == 1
    assert result["metrics"]["float"]["accuracy"] == result["metrics"]["exported"]["accuracy"]
    assert [row["speed"][0]["batch"] for row in result["networks"]] == [1, 1]
    assert "The student as LiteRT is" in (tmp_path / "out" / "report.html").read_text()


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x.mean(1))[1]


def test_what_it_lacks_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot be exported to LiteRT .* export to onnx instead"):
        export(Model(Svd(), SPEC), to="litert", out=tmp_path / "out")
