"""Pretrained networks of other libraries get the pixels that their own transforms make of a photo."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_images import write_images
from tools import imported

from protege import Model, evaluate, load_data, load_model
from protege.data import CLEAN, Augment
from protege.models import framed_for

SIZES = [(211, 140), (160, 227), (153, 153), (190, 141), (144, 297), (301, 300)]


@pytest.fixture(scope="module")
def photos():
    noise = [np.random.default_rng(n).integers(0, 256, (20, 21, 3), np.uint8) for n in range(len(SIZES))]
    return [Image.fromarray(x).resize(size, Image.Resampling.BICUBIC) for x, size in zip(noise, SIZES, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    files = {f"{part}/{'abc'[n % 3]}/{n}.png": photo for part in ("train", "test") for n, photo in enumerate(photos)}
    return write_images(tmp_path_factory.mktemp("photos"), files)


def pixels(model: Model, folder) -> torch.Tensor:
    """What the network is called on in an evaluation, in the order of the photos' numbers."""
    data = framed_for(model, load_data(f"images:{folder}"))
    ready = model.prepared(data.test.fetch(torch.arange(6), CLEAN, Augment()).inputs)
    return ready[torch.tensor([0, 2, 4, 1, 3, 5])]  # 0 3, 1 4, 2 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 0.9, "interpolation": "bilinear"},
        {"crop_mode": "squash", "crop_pct": 0.95},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"input_size": (3, 96, 128)},
        {"test_input_size": (3, 192, 192), "test_crop_pct": 1.0},
    ],
)
def test_pixels_are_those_of_timm(photos, folder, changes, tmp_path):
    timm = imported("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.pretrained_cfg = network.pretrained_cfg | changes
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    wanted = torch.stack([transform(photo) for photo in photos])
    model = load_model(network)
    assert (pixels(model, folder) - wanted).abs().max() < 1e-5
    again = load_model(model.save(tmp_path / "model"), network=network)
    assert again.input == model.input
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(network(wanted), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert evaluate(network, f"images:{folder}", precision="fp32")["nll"] == pytest.approx(float(expected), rel=1e-4)


def test_pixels_are_those_of_an_image_processor(photos, folder, tmp_path):
    imported("timm")  # and with it a torchvision that fits
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=48, patch_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.num_labels = 3
    network = transformers.ViTForImageClassification(config).eval()
    assert load_model(network).input.size == (48, 48)  # for which it was built, whatever its kind is usually given
    processors = [
        transformers.ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.4] * 3, resample=3),
        transformers.BitImageProcessor(size={"shortest_edge": 55}, crop_size={"height": 48, "width": 48}),
        transformers.MobileNetV2ImageProcessor(
            size={"shortest_edge": 54}, crop_size={"height": 48, "width": 48}, rescale_factor=1 / 127.5
        ),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.9),
    ]
    for number, processor in enumerate(processors):
        network.save_pretrained(tmp_path / str(number))
        processor.save_pretrained(tmp_path / str(number))
        loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / str(number)).eval()
        model = load_model(loaded)
        wanted = torch.stack([processor(images=photo, return_tensors="pt")["pixel_values"][0] for photo in photos])
        assert model.input.size == (48, 48)
        gap = (pixels(model, folder) - wanted).abs() * torch.tensor(model.input.std).view(3, 1, 1) * 255
        assert gap.max() < 2.1, model.input  # grey levels: it computes on tensors, not with Pillow


def test_pixels_are_those_of_a_preset_of_torchvision(photos, folder, monkeypatch):
    imported("timm")
    import torchvision

    torch.manual_seed(0)
    state = torchvision.models.shufflenet_v2_x0_5().state_dict()
    kind = torchvision.models.ShuffleNet_V2_X0_5_Weights
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: state)  # nothing is downloaded
    transform = kind.IMAGENET1K_V1.transforms()
    wanted = torch.stack([transform(photo) for photo in photos])
    named = load_model("torchvision.models:shufflenet_v2_x0_5?weights=IMAGENET1K_V1", trained=True)
    given = load_model(torchvision.models.shufflenet_v2_x0_5(weights="DEFAULT"), trained=True)
    for model in (named, given):
        assert (pixels(model, folder) - wanted).abs().max() < 1e-5
    other = torchvision.models.resnet50()  # of which there are weights that want other photos than the first ones did
    assert load_model(other, trained=True).input.crop_share == pytest.approx(224 / 232)
