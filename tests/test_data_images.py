"""Image files are read as every viewer shows them, and nothing of a set is lost without a word."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from photos import clean, encoded, picture, stored, tagged, whole, write_images
from PIL import Image
from scenes import write_pair

import protege
from protege.data import CLEAN, Augment, load_data
from protege.errors import UserError
from protege.models import InputSpec, Model, load_model
from protege.run.shrinking import open_for

# ---- orientation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_tags_are_followed(tmp_path, form, limit):
    files = {}
    for orientation in range(10):  # 0 and 9 are no orientations
        shown = picture(orientation)
        image = stored(shown, orientation) if 2 <= orientation <= 8 else Image.fromarray(shown)
        files[f"{'ab'[orientation % 2]}/{orientation}.{form.lower()}"] = encoded(image, form, exif=tagged(orientation))
    data = whole(write_images(tmp_path, files), memory_limit=limit, scratch=tmp_path / ".scratch")
    assert data.train.shape == ((3, 12, 20) if limit else data.train.shape)  # one size, by the headers already
    order = [*range(0, 10, 2), *range(1, 10, 2)]
    for image, orientation in zip(clean(data.train).astype(int), order, strict=True):
        assert np.abs(image - picture(orientation).astype(int)).max() <= (25 if form == "JPEG" else 0)


def test_crops_are_cut_from_the_upright_image(tmp_path):
    shown = picture(3, 90, 130)
    files = {f"{k}/{i}.png": stored(shown, 6) if k == "b" else Image.fromarray(shown) for k in "ab" for i in range(2)}
    for name in files:
        files[name] = encoded(files[name], "PNG", exif=tagged(6 if name.startswith("b") else 1))
    samples = whole(write_images(tmp_path, files), image_size=32, memory_limit=0).train
    tagged_ones = samples.part(torch.tensor([2, 3]))  # their views are those of positions 0 and 1
    for view in range(3):
        at = torch.tensor([0, 1])
        plain = samples.fetch(at, view, Augment(crop=0.3, flip=True)).inputs
        assert torch.equal(tagged_ones.fetch(at, view, Augment(crop=0.3, flip=True)).inputs, plain)


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_scenes_and_masks_follow_their_tags(tmp_path, orientation):
    image, mask = picture(1, 24, 32), np.zeros((24, 32), np.uint8)
    mask[:5, :9] = 1
    for split in ("train", "test"):
        write_pair(tmp_path, split, "plain", image, mask)
        write_pair(tmp_path, split, "turned", image, mask)
        stored(image, orientation).save(tmp_path / split / "turned.png", exif=tagged(orientation))
        write_pair(tmp_path, split, "both", image, mask)
        stored(image, orientation).save(tmp_path / split / "both.png", exif=tagged(orientation))
        stored(mask, orientation).save(tmp_path / f"{split}annot" / "both.png", exif=tagged(orientation))
    for limit in (1 << 30, 0):
        data = load_data(f"segmentation:{tmp_path}", memory_limit=limit)
        batch = data.train.fetch(torch.arange(3), CLEAN, Augment())
        for n in range(3):
            assert torch.equal(batch.inputs[n].permute(1, 2, 0), torch.from_numpy(image.copy()))
            assert torch.equal(batch.labels[n], torch.from_numpy(mask.astype(np.int64)))
    stored(mask, 6).save(tmp_path / "trainannot" / "turned.png")  # drawn on the pixels as they are stored
    stored(image, 6).save(tmp_path / "train" / "turned.png", exif=tagged(6))
    with pytest.raises(UserError, match=r"24×32 but its image turned.png is 32×24; .* remove the image's orientation"):
        load_data(f"segmentation:{tmp_path}")


# ---- more than 8 bits -------------------------------------------------------------------------------------------

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = {
    "float 0 to 1": (RAMP / 255).astype(np.float32),
    "float 0 to 255": RAMP.astype(np.float32),
    "float -1 to 1": (RAMP / 127.5 - 1).astype(np.float32),
    "float 270 to 310": (270 + RAMP * (40 / 255)).astype(np.float32),
    "10 bit": RAMP.astype(np.uint16) * 4,
    "12 bit": RAMP.astype(np.uint16) * 16,
    "14 bit": RAMP.astype(np.uint16) * 64,
    "16 bit": RAMP.astype(np.uint16) * 257,
    "32 bit": RAMP.astype(np.int32) * 100_000,
    "signed": RAMP.astype(np.int32) * 16 - 1024,
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_one_scale_for_a_set(tmp_path, kind, limit, caplog):
    """All levels of the brightest image come out, and one a quarter as bright stays so."""
    bright = DEEP[kind]
    low = bright.min()
    dark = (low + (bright - low) / 4).astype(bright.dtype)
    suffix = "png" if bright.dtype == np.uint16 else "tif"
    files = {f"{k}/{n}.{suffix}": image for k in "ab" for n, image in enumerate((dark, bright))}
    with caplog.at_level("INFO", "protege"):
        data = whole(write_images(tmp_path, files), memory_limit=limit)
    assert caplog.text.count("is black and") == 1
    shown = clean(data.train)[..., 0].astype(int)
    size = RAMP if shown.shape[1] == 16 else np.asarray(Image.fromarray(RAMP).resize((224, 224)))
    assert np.abs(shown[1] - size).max() <= 1 + 3 * (shown.shape[1] == 224)
    assert np.abs(shown[0] - size / 4).max() <= 2 + 3 * (shown.shape[1] == 224)


def test_training_decides_for_all_splits(tmp_path, caplog):
    ramp = DEEP["12 bit"]
    files = {f"train/{k}/{n}.png": ramp for k in "ab" for n in range(2)}
    files |= {"test/a/0.png": ramp // 8, "test/b/0.png": ramp * 2}
    data = load_data(f"images:{write_images(tmp_path, files)}")
    assert data.ranges == (("integer", 0.0, 4095.0),)
    dark, cut = clean(data.test)[..., 0]
    assert np.array_equal(dark, RAMP // 8)
    assert np.array_equal(cut, np.minimum(RAMP.astype(int) * 2, 255))
    assert "1 of 2 such images in test" in caplog.text
    alone = write_images(tmp_path / "dark", {f"{k}/{n}.png": ramp // 8 for k in "ab" for n in range(2)})
    assert clean(whole(alone).train).max() > 100
    assert np.array_equal(clean(whole(alone, ranges=data.ranges).train)[0, ..., 0], RAMP // 8)


def test_eight_and_sixteen_bits_together(tmp_path):
    files = {f"{k}/{n}.png": image for k in "ab" for n, image in enumerate((RAMP // 2, DEEP["12 bit"]))}
    files |= {"a/f.tif": DEEP["float 0 to 1"]}
    data = whole(write_images(tmp_path, files))
    assert [kind for kind, *_ in data.ranges] == ["float", "integer"]
    half, ramp, *_ = clean(data.train)[..., 0]
    assert np.array_equal(half, RAMP // 2)
    assert np.array_equal(ramp, RAMP)


def png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel [H, W, 3 or 4], which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, {3: 2, 4: 6}[values.shape[2]], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_sixteen_bits_have_a_scale_too(tmp_path):
    colours = np.random.default_rng(0).integers(0, 4096, (9, 7, 3))
    colours[0, 0] = 4095
    opaque = np.dstack([colours, np.full((9, 7), 65535)])
    files = {f"{k}/{n}.png": png(image) for k in "ab" for n, image in enumerate((colours, opaque))}
    data = whole(write_images(tmp_path, files))
    assert data.ranges == (("integer", 0.0, 4095.0),)
    assert np.array_equal(clean(data.train), np.stack([colours >> 4] * 4))


def test_pixels_that_are_no_number_are_refused(tmp_path):
    hole = DEEP["float 0 to 1"].copy()
    hole[3, 4] = np.nan
    write_images(tmp_path, {"a/0.tif": hole, "a/1.tif": hole * 0, "b/0.tif": hole, "b/1.tif": hole})
    with pytest.raises(UserError, match=r"image .*a/0.tif has pixels that are not finite; mend or remove"):
        whole(tmp_path)


# ---- transparency -----------------------------------------------------------------------------------------------


def logos(mode: str) -> dict[str, Image.Image]:
    """Noise that is transparent, around a square that is not."""
    noise = np.random.default_rng(0).integers(0, 200, (16, 16, 4), np.uint8)
    noise[..., 3] = 0
    noise[4:12, 4:12] = (90, 90, 90, 255)
    image = Image.fromarray(noise)
    if mode == "P":  # an entry of the palette for what is transparent
        index = np.random.default_rng(0).integers(1, 4, (16, 16)).astype(np.uint8)
        index[4:12, 4:12] = 0
        image = Image.fromarray(index, "P")
        image.putpalette([90, 90, 90, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.info["transparency"] = bytes([255, 0, 0, 0])
    elif mode == "RGB":  # a colour that stands for it
        index = np.full((16, 16, 3), (255, 0, 255), np.uint8)
        index[4:12, 4:12] = 90
        image = Image.fromarray(index)
        image.info["transparency"] = (255, 0, 255)
    else:
        image = image.convert(mode)
    return {"a/0.png": image, "a/1.png": image, "b/0.png": image, "b/1.png": image}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_transparent_pixels_are_white(tmp_path, mode, limit, caplog):
    with caplog.at_level("INFO", "protege"):
        data = whole(write_images(tmp_path, logos(mode)), memory_limit=limit, image_size=None if limit else 16)
    wanted = np.full((16, 16), 255)
    wanted[4:12, 4:12] = 90
    assert (clean(data.train) == wanted[..., None]).all()
    assert caplog.text.count("has transparent pixels") == 1


def test_opaque_images_are_not_told_of(tmp_path, caplog):
    image = Image.fromarray(picture(0)).convert("RGBA")
    with caplog.at_level("INFO", "protege"):
        data = whole(write_images(tmp_path, {f"{k}/{n}.png": image for k in "ab" for n in range(2)}))
    assert "transparent" not in caplog.text
    assert (clean(data.train) == picture(0)).all()


# ---- which files ------------------------------------------------------------------------------------------------


def test_whatever_pillow_reads_is_read(tmp_path, caplog):
    image = Image.fromarray(picture(0))
    files: dict[str, Image.Image | bytes] = {"a/deep/er/1.PNG": encoded(image, "PNG"), "a/none": encoded(image, "PNG")}
    forms = {"jfif": "JPEG", "JPG": "JPEG", "jp2": "JPEG2000", "tga": "TGA", "pcx": "PCX", "dib": "DIB", "bin": "GIF"}
    files |= {f"b/1.{suffix}": encoded(image, form) for suffix, form in forms.items()}
    files |= {"b/frames.tif": encoded(image, "TIFF", save_all=True, append_images=[Image.new("RGB", image.size)])}
    files |= {
        "a/Thumbs.db": b"\xd0\xcf\x11\xe0" * 90,
        "b/.DS_Store": b"\0\0\0\1Bud1",
        "b/.hidden/1.png": files["a/none"],
    }
    files |= {"a/notes.txt": b"P6 is how some notes begin", "readme.md": b"#", "stray.png": files["a/none"]}
    write_images(tmp_path, files)
    os.symlink(tmp_path, tmp_path / "a" / "deep" / "loop")
    os.symlink(tmp_path / "nowhere.jpg", tmp_path / "a" / "broken.jpg")
    with caplog.at_level("INFO", "protege"):
        data = whole(tmp_path)
    assert data.train.labels.bincount().tolist() == [2, len(forms) + 1]
    assert np.abs(clean(data.train).astype(int) - picture(0)).mean() < 12
    assert "no images that Pillow reads, 1 of them links to nothing." in caplog.text
    assert "4 left out, such as" in caplog.text  # Thumbs.db, notes.txt, readme.md and the broken link
    assert "1 left out, such as" in caplog.text  # stray.png


def test_images_without_classes_are_looked_for_alike(tmp_path):
    files = {
        "one": encoded(Image.fromarray(picture(0)), "PNG"),
        "two.jfif": encoded(Image.fromarray(picture(1)), "JPEG"),
    }
    assert len(whole(write_images(tmp_path, files)).train) == 2


def test_scenes_lie_in_folders_below(tmp_path):
    for split in ("train", "test"):
        for name in ("a/1", "b/1"):
            for folder, array in ((split, picture(2)), (f"{split}annot", np.eye(12, 20, dtype=np.uint8))):
                (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    assert len(load_data(f"segmentation:{tmp_path}").train) == 2


def test_a_model_keeps_the_scale_it_learned(tmp_path):
    """What stays dark in one test folder stays so in another, through a saved model, and for what it teaches."""
    ramp = DEEP["12 bit"]
    files = {f"{k}/{n}.png": np.rot90(ramp, n % 4) // (1 + (k == "b")) for k in "ab" for n in range(8)}
    photos = f"images:{write_images(tmp_path / 'photos', files)}"
    dark = f"images:{write_images(tmp_path / 'dark', {n: i // 8 for n, i in files.items()})}"
    network = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(1, 2))
    with torch.no_grad():  # 'a' is what is brighter than half of the brightest image
        network[2].weight.copy_(torch.tensor([[30.0], [-30.0]]))
        network[2].bias.copy_(torch.tensor([-11.0, 11.0]))
    teacher = Model(network, InputSpec(channels=1), classes=("a", "b"))
    run = protege.train(teacher, photos, out=tmp_path / "run", epochs=1, lr=1e-9, augment="none", overwrite=True)
    assert run.student.input.ranges == (("integer", 0.0, 4095.0),)
    folder = tmp_path / "run" / "student"
    assert json.loads((folder / "config.json").read_text())["input"]["ranges"] == [["integer", 0, 4095]]
    loaded = load_model(folder, network=network)
    assert protege.evaluate(loaded, photos)["accuracy"] == 1
    assert protege.evaluate(loaded, dark, split="all")["accuracy"] == 0.5  # all are too dark for 'a'
    with pytest.raises(
        UserError, match=r"4095 for white .* opened with 0 and 1023; open it with load_data\(…, ranges="
    ):
        protege.evaluate(loaded, load_data(dark))
    student = protege.distill(loaded, "zoo:mlp", photos, "kd", tmp_path / "small", epochs=1).student
    assert student.input.ranges == loaded.input.ranges
    assert open_for(dark, None, tmp_path / "small").ranges == loaded.input.ranges


def test_eight_bits_leave_no_trace(tmp_path):
    write_images(tmp_path, {f"{k}/{n}.png": picture(n) for k in "ab" for n in range(2)})
    model = load_model("zoo:resnet8", data=whole(tmp_path))
    assert "ranges" not in model.input.to_dict()


# ---- images given in Python -------------------------------------------------------------------------------------


def test_datasets_of_turned_photos(tmp_path):
    items = []
    for n, orientation in enumerate((1, 3, 6, 8)):
        file = tmp_path / f"{n}.jpg"
        file.write_bytes(encoded(stored(picture(0), orientation), "JPEG", exif=tagged(orientation)))
        items.append((Image.open(file), n % 2))
        items.append((Image.open(file).convert("RGB"), n % 2))  # as torchvision's loader has it; the tag is kept
    shown = clean(load_data(items, whole=True).train)
    assert np.abs(shown.astype(int) - picture(0)).max() <= 25


MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_images_of_every_mode_among_colour(mode, limit):
    colour, other = Image.new("RGB", (6, 5), (200, 100, 0)), Image.new(mode, (6, 5))
    late = [(other if n == 395 else colour, n % 2) for n in range(400)]
    early = [(other if n == 0 else colour, n % 2) for n in range(40)]
    for items in (early, late) if limit else (early,):
        data = load_data(items, whole=True, memory_limit=limit)
        assert data.train.shape == (3, 5, 6)
        assert (clean(data.train, 39)[1:] == (200, 100, 0)).all()


@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize("at", [0, 7, 399])
def test_tensors_of_grey_and_colour_mix(limit, at):
    grey, colour = torch.full((1, 4, 4), 0.2), torch.rand(3, 4, 4)
    for one, others in ((grey, colour), (colour, grey)):
        items = [(one if n == at else others, n % 2) for n in range(400)]
        if limit == 0 and at == 7 and one is grey:  # looked at as they come
            continue
        data = load_data(items, whole=True, memory_limit=limit)
        assert data.train.shape == (3, 4, 4)
        found = torch.from_numpy(clean(data.train)[at]).permute(2, 0, 1)
        assert torch.equal(found, (one * 255).round().to(torch.uint8).expand(3, 4, 4))


def test_grey_stays_grey_in_a_dataset():
    assert load_data([(Image.new("L", (4, 4)), n % 2) for n in range(8)]).train.shape == (1, 4, 4)


def test_datasets_of_deep_images_have_one_scale(caplog):
    ramp = DEEP["12 bit"]
    items = [(Image.fromarray(ramp // (1 + 3 * (n % 2))), n % 2) for n in range(400)]
    with caplog.at_level("INFO", "protege"):
        data = load_data((items, [(Image.fromarray(ramp // 8), n % 2) for n in range(4)]))
    assert data.ranges == (("integer", 0.0, 4095.0),)
    assert caplog.text.count("is black and") == 1
    bright, dark = clean(data.train, 2)[..., 0]
    assert np.array_equal(bright, RAMP)
    assert np.array_equal(dark, RAMP // 4)
    assert np.array_equal(clean(data.test)[0, ..., 0], RAMP // 8)
    late = [(Image.fromarray(ramp if n == 399 else RAMP), n % 2) for n in range(400)]
    assert np.array_equal(clean(load_data(late, whole=True).train)[[0, 399], ..., 0], np.stack([RAMP, RAMP]))


def test_floats_beside_0_to_1_by_rounding(caplog):
    images = torch.rand(8, 3, 4, 4)
    images[0, 0, 0, :2] = torch.tensor([1.0000002, -1e-7])
    pixels = clean(load_data([(image, n % 2) for n, image in enumerate(images)], whole=True).train)
    assert pixels[0, 0, :2, 0].tolist() == [255, 0]
    for scale, shift, remedy in ((255, 0, "divide the images by 255"), (4, -2, "Normalize"), (1.2, -0.1, "clamp")):
        with pytest.raises(UserError, match=rf"has float values from .* where 0 to 1 is expected; .*{remedy}"):
            load_data([(image * scale + shift, n % 2) for n, image in enumerate(images)])


def test_transparent_images_of_a_dataset_are_on_white(caplog):
    items = [(image, n % 2) for n, image in enumerate(logos("RGBA").values())]
    with caplog.at_level("INFO", "protege"):
        found = clean(load_data(items, whole=True).train)
    assert (found[:, :4] == 255).all()
    assert caplog.text.count("has transparent pixels") == 1
