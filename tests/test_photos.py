"""Photos as phones and cameras make them: large, in wide colours, in several formats, some of them damaged."""

import io
import logging
import os
import struct
import sys
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from photos import clean, encoded, picture, stored, tagged, whole, write_images
from PIL import Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from scenes import write_pair

from protege.data import CLEAN, Augment, load_data
from protege.data.decode import Form, decode
from protege.data.framing import Frame
from protege.data.pixels import remarks_of
from protege.errors import UserError

# ---- large JPEGs are decoded at a reduced size ----------------------------------------------------------------------


def scenery(height: int, width: int, seed: int = 0) -> np.ndarray:
    """With edges, textures and a little noise."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for size in (3, 9, 40):
        coarse = random.integers(0, 256, (size, size, 3), np.uint8)
        image += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 3
    image[height // 5 : height // 2, width // 6 : width // 3] = (250, 30, 60)
    return (image + random.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def scales(monkeypatch) -> list[tuple[int, int]]:
    """The sizes that JPEGs are decoded at."""
    sizes: list[tuple[int, int]] = []
    load = JpegImageFile.load

    def noted(image):
        if image.tile:
            sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImageFile, "load", noted)
    return sizes


def in_full(data: bytes, width: int, height: int, resample=Image.Resampling.BILINEAR) -> np.ndarray:
    """What decoding all pixels gives, by Pillow's own means."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (width, height), resample), np.int16)


@pytest.mark.parametrize(("height", "width", "scale"), [(300, 400, 4), (301, 403, 4), (703, 501, 8), (95, 127, 1)])
def test_large_jpegs_are_decoded_small(height, width, scale, scales):
    shown = scenery(height, width)
    for orientation in range(1, 9):
        image = Image.fromarray(shown) if orientation == 1 else stored(shown, orientation)
        data = encoded(image, "JPEG", exif=tagged(orientation), subsampling=2, quality=90)
        full = in_full(data, 28, 28)
        scales.clear()
        pixels, _ = decode(data, "photo", Form(28, 28, 3, True))
        assert {tuple(sorted(size)) for size in scales} == {tuple(sorted((-(-width // scale), -(-height // scale))))}
        error = np.abs(pixels - full)
        assert error.mean() < 0.8
        assert error.max() <= 10


@pytest.mark.parametrize("frame", [Frame("bicubic", 0.875), Frame("lanczos", 0.9, "squash"), Frame("nearest")])
def test_a_rule_of_resizing_is_followed_by_what_is_decoded_small(frame, scales):
    photo = Image.fromarray(scenery(450, 603))
    exact, _ = decode(encoded(photo, "PNG"), "photo", Form(24, 32, 3, frame))
    pixels, _ = decode(encoded(photo, "JPEG"), "photo", Form(24, 32, 3, frame))
    assert scales == [(603, 450) if frame.interpolation == "nearest" else (76, 57)]
    assert np.abs(pixels.astype(int) - exact).mean() < (3 if frame.interpolation == "nearest" else 1)


@pytest.mark.parametrize("orientation", [1, 2, 4, 6, 7, 8])
def test_crops_of_large_jpegs_show_the_same_part(orientation, scales):
    shown = scenery(503, 403)
    image = Image.fromarray(shown) if orientation == 1 else stored(shown, orientation)
    data = encoded(image, "JPEG", exif=tagged(orientation), subsampling=2)
    for box in ((0, 0, 503, 403), (50, 17, 453, 386), (3, 150, 250, 250), (253, 153, 250, 250)):
        for flip in (False, True):

            def crop(height, width, box=box, flip=flip):
                assert (height.item(), width.item()) == (503, 403)
                return torch.tensor([box]), torch.tensor([flip])

            pixels, _ = decode(data, "photo", Form(20, 20, 3, True), crop)
            top, left, height, width = box
            cut = Image.fromarray(shown).resize(
                (20, 20), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
            )
            expected = np.asarray(ImageOps.mirror(cut) if flip else cut, np.int16)
            assert np.abs(pixels - expected).mean() < 1.2
    assert len(set(scales)) > 1  # small boxes leave less room


def test_grey_and_cmyk_jpegs_are_decoded_small_too(scales):
    photo = Image.fromarray(scenery(600, 800))
    for mode, channels in (("L", 1), ("L", 3), ("CMYK", 3)):
        plain = photo.convert(mode).convert("L" if channels == 1 else "RGB")
        pixels, _ = decode(encoded(photo.convert(mode), "JPEG"), "photo", Form(56, 56, channels, True))
        expected = np.asarray(ImageOps.fit(plain, (56, 56), Image.Resampling.BILINEAR), np.int16)
        assert np.abs(pixels - expected.reshape(pixels.shape)).mean() < 0.6
        assert scales.pop() == (200, 150)


def test_masks_are_never_decoded_small(tmp_path):
    image, mask = scenery(480, 640), np.zeros((480, 640), np.uint8)
    mask[::2, ::3] = 1
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", image, mask)
        (tmp_path / split / "a.png").unlink()
        Image.fromarray(image).save(tmp_path / split / "a.jpg", quality=95)
        profile = wide(DISPLAY_P3)
        Image.fromarray(mask).save(tmp_path / f"{split}annot" / "a.tif", icc_profile=profile)
        (tmp_path / f"{split}annot" / "a.png").unlink()
    small = ImageOps.fit(Image.fromarray(mask), (80, 60), Image.Resampling.NEAREST)
    for limit in (1 << 30, 0):
        data = load_data(f"segmentation:{tmp_path}", image_size=60, memory_limit=limit)
        batch = data.train.fetch(torch.arange(1), CLEAN, Augment())
        assert np.array_equal(batch.labels[0].numpy(), np.asarray(small))
        exact = np.asarray(ImageOps.fit(Image.fromarray(image), (80, 60), Image.Resampling.BILINEAR), np.int16)
        assert np.abs(batch.inputs[0].permute(1, 2, 0).numpy() - exact).mean() < 0.7


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_what_decoding_makes_of_an_image_is_part_of_its_fingerprint(tmp_path, limit, monkeypatch):
    write_images(tmp_path, {f"images/{k}/{i}.jpg": picture(i) for k in "ab" for i in range(2)})
    mask = np.zeros((12, 20), np.uint8)
    mask[:5] = 1
    for split in ("train", "test"):
        write_pair(tmp_path / "scenes", split, "a", picture(0), mask)
    specs = f"images:{tmp_path / 'images'}", f"segmentation:{tmp_path / 'scenes'}"

    def prints() -> list[str]:
        return [load_data(spec, memory_limit=limit).train.fingerprint() for spec in specs]

    before = prints()
    assert prints() == before
    monkeypatch.setattr("protege.data.encoded.VERSION", -1)
    assert not set(prints()) & set(before)


# ---- colours as other programs show them ----------------------------------------------------------------------------

D50, D65 = np.array([0.9642, 1, 0.8249]), np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def to_xyz(primaries) -> np.ndarray:
    """From linear red, green and blue to XYZ under D65."""
    columns = np.stack([np.array([x / y, 1, (1 - x - y) / y]) for x, y in primaries], 1)
    return columns * np.linalg.solve(columns, D65)


def linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_bytes(light: np.ndarray) -> np.ndarray:
    """Linear light as sRGB in 8 bits."""
    light = light.clip(0, 1)
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile, written by the book (ICC.1:2010)."""
    text = (
        b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 2, 28) + "P".encode("utf-16-be")
    )
    white = b"XYZ " + bytes(4) + fixed(*D50)
    table, body, tags = b"", b"", {b"desc": text, b"cprt": text, b"wtpt": white, **tags}
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = 132 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s12x4s28x", size, b"lcms", 0x04200000, kind, space, connection, b"acsp") + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def curve(gamma: float | None) -> bytes:
    """A power of the values, or sRGB's own curve."""
    if gamma is not None:
        return b"para" + bytes(4) + struct.pack(">HH", 0, 0) + fixed(gamma)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def wide(primaries, gamma: float | None = None) -> bytes:
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD @ to_xyz(primaries)
    colours = {f"{c}XYZ".encode(): b"XYZ " + bytes(4) + fixed(*xyz) for c, xyz in zip("rgb", adapted.T, strict=True)}
    return profile(b"RGB ", colours | {f"{c}TRC".encode(): curve(gamma) for c in "rgb"})


def as_srgb(pixels: np.ndarray, primaries, gamma: float | None = None) -> np.ndarray:
    values = pixels / 255
    light = linear(values) if gamma is None else values**gamma
    return in_bytes(light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T)


def inks() -> tuple[bytes, np.ndarray]:
    """A CMYK profile that is a table of two steps an ink, and what sRGB its 16 corners are: those of full inks that
    multiply, a little off."""
    corners = np.array([[k >> bit & 1 for bit in (3, 2, 1, 0)] for k in range(16)], float)
    light = 0.08 + 0.92 * (1 - corners[:, :3]) * (1 - 0.9 * corners[:, 3:])
    xyz = light @ to_xyz(SRGB).T
    xyz = xyz @ (np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD).T / D50
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    table = np.rint((lab + np.array([0, 128, 128])) * (65280 / 100, 256, 256)).clip(0, 65535).astype(">u2")
    steps = np.array([0, 65535], ">u2").tobytes()
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + identity + struct.pack(">HH", 2, 2)
    lut += steps * 4 + table.tobytes() + steps * 3
    return profile(b"CMYK", {b"A2B0": lut}, b"Lab ", b"prtr"), in_bytes(light)


PATCHES = np.array(
    [[[r, g, b] for g in (0, 64, 140, 255) for b in (0, 90, 200, 255)] for r in (0, 50, 128, 255)], np.uint8
)  # [4, 16, 3]


@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize(("primaries", "gamma"), [(DISPLAY_P3, None), (ADOBE_RGB, 2.19921875)])
def test_wide_colours_are_shown_as_they_are_meant(tmp_path, primaries, gamma, limit):
    known = wide(primaries, gamma)
    patches = np.repeat(np.repeat(PATCHES, 8, 0), 4, 1)  # JPEG keeps blocks of one colour
    opaque = np.dstack([patches, np.full(patches.shape[:2], 255, np.uint8)])
    files = {f"a/{form}": encoded(Image.fromarray(patches), form, icc_profile=known) for form in ("TIFF", "WEBP")}
    files["a/alpha"] = encoded(Image.fromarray(opaque), "WEBP", icc_profile=known)
    files["b/jpeg"] = encoded(Image.fromarray(patches), "JPEG", icc_profile=known)
    opaque[..., 3] = 0
    opaque[:, 32:, 3] = 255
    files["b/transparent"] = encoded(Image.fromarray(opaque), "TIFF", icc_profile=known)
    expected = as_srgb(patches, primaries, gamma)
    assert np.abs(expected - patches).max() > 20
    write_images(tmp_path, files)
    if not limit:
        images = clean(whole(tmp_path, memory_limit=0, image_size=64, scratch=tmp_path / ".scratch").train)
        fitted = ImageOps.fit(Image.fromarray(expected.astype(np.uint8)), (64, 64), Image.Resampling.BILINEAR)
        assert np.abs(images[:4].astype(int) - np.asarray(fitted)).mean((1, 2, 3)).max() < 2
        return
    images = clean(whole(tmp_path).train)
    for image, most in zip(images[:4], (2, 2, 2, 16), strict=True):
        assert np.abs(image - expected).max() <= most
    assert (images[4][:, :32] == 255).all()
    assert np.abs(images[4][:, 32:] - expected[:, 32:]).max() <= 2


def test_grey_tones_are_shown_as_they_are_meant(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    dark = in_bytes((ramp / 255) ** 1.5)
    assert np.abs(dark - ramp).max() > 20
    known = profile(b"GRAY", {b"kTRC": curve(1.5)})
    files = {f"{k}/{k}.tif": encoded(Image.fromarray(ramp), "TIFF", icc_profile=known) for k in "ab"}
    for channels in (1, 3):
        images = clean(whole(write_images(tmp_path, files)).train)
        assert images.shape[-1] == channels
        assert np.abs(images[0] - dark[..., None]).max() <= 2
        files["b/colour.tif"] = encoded(Image.fromarray(np.dstack([ramp] * 3)), "TIFF")
    for kind in (np.uint16, np.int32, np.float32):  # whose own scale is learned from the set
        deep = encoded(Image.fromarray((ramp * 200.0).astype(kind)), "TIFF", icc_profile=known)
        assert "profile" not in remarks_of(Image.open(io.BytesIO(deep)))
    tones = encoded(Image.fromarray(ramp), "TIFF", icc_profile=wide(DISPLAY_P3, 1.5))  # a colour's, of a grey photo
    images = clean(whole(write_images(tmp_path / "more", {"a/a.tif": tones, "b/b.tif": tones})).train)
    assert np.abs(images[0] - dark[..., None]).max() <= 2


def test_inks_are_shown_by_their_profile_or_else_multiplied(tmp_path):
    known, corners = inks()
    ink = np.array([[k >> bit & 1 for bit in (3, 2, 1, 0)] for k in range(16)], np.uint8) * 255
    photo = Image.fromarray(np.repeat(np.repeat(ink.reshape(4, 4, 4), 8, 0), 8, 1), "CMYK")
    expected = np.repeat(np.repeat(corners.reshape(4, 4, 3), 8, 0), 8, 1)
    plain = (255 - np.asarray(photo, int)[..., :3]) * (255 - np.asarray(photo, int)[..., 3:]) / 255
    files = {"a/jpeg": encoded(photo, "JPEG", icc_profile=known), "a/tiff": encoded(photo, "TIFF", icc_profile=known)}
    files |= {"b/jpeg": encoded(photo, "JPEG"), "b/tiff": encoded(photo, "TIFF")}
    assert b"Adobe" in files["b/jpeg"]  # in which zero is full ink
    images = clean(whole(write_images(tmp_path, files)).train)
    for image, meant, most in zip(images, (expected, expected, plain, plain), (4, 3, 3, 1), strict=True):
        assert np.abs(image - meant).max() <= most


def test_a_profile_that_is_srgb_changes_nothing(tmp_path, caplog):
    image, known = picture(3), wide(SRGB)
    files = {"a/0.tif": encoded(Image.fromarray(image), "TIFF", icc_profile=known)}
    files["b/0.tif"] = encoded(
        Image.fromarray(image), "TIFF", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    files["b/1.png"] = encoded(Image.fromarray(image), "PNG", icc_profile=wide(DISPLAY_P3))  # as ever
    with caplog.at_level(logging.INFO):
        assert (clean(whole(write_images(tmp_path, files)).train) == image).all()
    assert "profile" not in caplog.text


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_a_profile_that_cannot_be_used_is_left_aside_and_told_once(tmp_path, limit, caplog):
    image = picture(4)
    known = wide(DISPLAY_P3)
    bad = [known[:150], b"no profile", known.replace(b"acsp", b"????"), profile(b"GRAY", {b"kTRC": curve(2)})]
    files = {f"a/{n}.tif": encoded(Image.fromarray(image), "TIFF", icc_profile=data) for n, data in enumerate(bad)}
    files["b/0.tif"] = encoded(Image.fromarray(image), "TIFF", icc_profile=inks()[0])
    with caplog.at_level(logging.INFO):
        data = whole(write_images(tmp_path, files), memory_limit=limit, image_size=None if limit else 12)
        images = clean(data.train)
    assert (images == image).all() if limit else (images == images[0]).all()
    assert caplog.text.count("colour profile") == caplog.text.count("0.tif has a colour profile that is damaged") == 1


def test_images_of_a_program_are_what_it_made_of_them():
    photo = encoded(Image.fromarray(picture(5)), "TIFF", icc_profile=wide(DISPLAY_P3))
    opened = [(Image.open(io.BytesIO(photo)), i % 2) for i in range(4)]
    made = [(Image.open(io.BytesIO(photo)).convert("RGB"), i % 2) for i in range(4)]
    meant = as_srgb(picture(5), DISPLAY_P3)
    assert np.abs(clean(load_data((opened, opened)).train)[0] - meant).max() <= 2
    assert (clean(load_data((made, made)).train)[0] == picture(5)).all()


# ---- several images in a file, and formats of phones ----------------------------------------------------------------


@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_several_images_in_a_file_the_first_is_taken(tmp_path, form, limit, caplog):
    first, second = Image.fromarray(picture(6)), Image.fromarray(picture(7))
    how = {"save_all": True, "append_images": [second]}
    files = {f"{k}/{k}": encoded(first, form, **how) for k in "ab"}
    alone = np.asarray(Image.open(io.BytesIO(encoded(first, form))).convert("RGB"), int)
    with caplog.at_level(logging.INFO):
        images = clean(whole(write_images(tmp_path, files), memory_limit=limit, image_size=None if limit else 20).train)
    if limit:
        assert np.abs(images - alone).max() <= (60 if form == "AVIF" else 0)
    told = "has several pages" if form == "TIFF" else "is animated"
    assert caplog.text.count(told) == 1
    assert f"{tmp_path}/a/a {told}; of it and all others the first" in caplog.text


def test_photos_with_a_small_copy_of_themselves_are_no_animation(tmp_path, caplog):
    shown = scenery(400, 600)
    stack = encoded(stored(shown, 6), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], exif=tagged(6))
    with caplog.at_level(logging.INFO):
        images = clean(whole(write_images(tmp_path, {"a/0.jpg": stack, "b/0.jpg": stack}), image_size=40).train)
    exact = np.asarray(ImageOps.fit(Image.fromarray(shown), (40, 40), Image.Resampling.BILINEAR), int)
    assert np.abs(images - exact).mean() < 3
    assert "animated" not in caplog.text


def test_avif_is_read_whatever_the_case_of_its_suffix(tmp_path):
    avif = encoded(Image.fromarray(picture(8)), "AVIF", quality=95, subsampling="4:4:4")
    files = {f"{k}/{k}.{suffix}": avif for k in "ab" for suffix in ("avif", "AVIF")}
    images = clean(whole(write_images(tmp_path, files)).train)
    assert len(images) == 4
    assert np.abs(images - picture(8).astype(int)).mean() < 4


def heic_header(brand: bytes = b"heic") -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(64)


@pytest.mark.parametrize("name", ["0.heic", "0.HEIC", "0.heif", "0.jpg", "photo"])
def test_heic_names_what_reads_it(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    write_images(tmp_path, {f"a/{name}": heic_header(), "b/1.png": picture(0)})
    with pytest.raises(UserError, match=rf'a/{name} is HEIC, .* pip install "protege\[heic\]", or convert'):
        whole(tmp_path)


def test_one_heic_among_many_photos_is_told_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    write_images(tmp_path, {"a/0.png": picture(0), "a/1.heic": heic_header(), "b/0.png": picture(0)})
    for n in range(2, 600):  # so many that a stream looks at some only
        os.link(tmp_path / "a/0.png", tmp_path / f"a/{n}.png")
    with pytest.raises(UserError, match=r"a/1.heic is HEIC"):
        whole(tmp_path, memory_limit=0, image_size=16)


def test_films_beside_photos_are_left_out(tmp_path, caplog):
    files = {f"{k}/0.png": picture(1) for k in "ab"} | {
        "a/0.mov": heic_header(b"qt  "),
        "b/0.mp4": heic_header(b"mp42"),
    }
    with caplog.at_level(logging.INFO):
        assert len(whole(write_images(tmp_path, files)).train) == 2
    assert "2 left out, such as" in caplog.text


@pytest.mark.parametrize("form", ["MPO", "AVIF"])
def test_masks_of_formats_that_change_values_are_refused(tmp_path, form):
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", picture(0), np.zeros((12, 20), np.uint8))
    (tmp_path / "trainannot/a.png").write_bytes(encoded(Image.new("L", (20, 12)), form, save_all=True))
    with pytest.raises(UserError, match=f"a.png is saved as ({form}|JPEG), which does not keep values exactly"):
        load_data(f"segmentation:{tmp_path}")


# ---- damaged files --------------------------------------------------------------------------------------------------


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def some(count: int = 6, size: int = 40) -> list[bytes]:
    return [encoded(Image.fromarray(picture(n, size, size)), "JPEG") for n in range(count)]


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_as_many_damaged_files_as_are_allowed_are_left_out(tmp_path, limit, caplog):
    files = {f"{'ab'[n % 2]}/{n}.jpg": data for n, data in enumerate(some(8))}
    intact = whole(write_images(tmp_path / "intact", files), memory_limit=limit, scratch=tmp_path / ".scratch")
    files |= {"a/cut.jpg": half(files["a/2.jpg"]), "b/text.jpg": b"not a photo", "b/empty.png": b""}
    png = bytearray(encoded(Image.fromarray(picture(9, 40, 40)), "PNG"))
    png[len(png) // 2] ^= 255  # its header and end are sound
    files["a/flipped.png"] = bytes(png)
    write_images(tmp_path / "photos", files)
    for allowed in (0, 3):
        with pytest.raises(
            UserError, match="cannot be decoded" if not allowed else r"4 of 12 files .* skip_bad = 4\."
        ) as told:
            clean(whole(tmp_path / "photos", memory_limit=limit, skip_bad=allowed, scratch=tmp_path / ".scratch").train)
        assert str(told.value).count("\n") == 0
    with caplog.at_level(logging.INFO):
        data = whole(tmp_path / "photos", memory_limit=limit, skip_bad=4, scratch=tmp_path / ".scratch")
    assert "4 of 12 files left out" in caplog.text
    assert all(name in caplog.text for name in ("a/cut.jpg", "b/text.jpg", "b/empty.png", "a/flipped.png"))
    assert (clean(data.train) == clean(intact.train)).all()
    assert data.train.labels.tolist() == intact.train.labels.tolist()
    assert data.train.fingerprint() == intact.train.fingerprint()
    with pytest.raises(UserError, match="skip_bad = -1"):
        whole(tmp_path / "photos", skip_bad=-1)


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_damaged_rows_of_parquet_are_left_out(tmp_path, limit):
    images, labels = some(12), [n % 2 for n in range(12)]
    images[3], images[8] = half(images[3]), b"no photo"
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "train.parquet", row_group_size=5)
    data = load_data(f"parquet:{tmp_path}", whole=True, memory_limit=limit, skip_bad=2, scratch=tmp_path / ".scratch")
    kept = [n for n in range(12) if n not in (3, 8)]
    assert data.train.labels.tolist() == [labels[n] for n in kept]
    if limit:  # at their own size
        for shown, n in zip(clean(data.train), kept, strict=True):
            assert np.abs(shown - picture(n, 40, 40).astype(int)).mean() < 5
    again = load_data(f"parquet:{tmp_path}", whole=True, memory_limit=limit, skip_bad=5, scratch=tmp_path / ".scratch")
    assert again.train.fingerprint() == data.train.fingerprint()
    assert (clean(again.train.part(torch.tensor([7, 2]))) == clean(data.train)[[7, 2]]).all()
    small = load_data(f"parquet:{tmp_path}", image_size=20, whole=True, skip_bad=2, scratch=tmp_path / ".scratch").train
    rule = Frame("bicubic", 0.9)  # by which the same rows are read again, in any order
    assert (clean(small.part(torch.tensor([7, 2])).framed(rule)) == clean(small.framed(rule))[[7, 2]]).all()


def test_damaged_images_and_masks_are_left_out_together(tmp_path):
    mask = np.zeros((24, 32), np.uint8)
    mask[:8] = 1
    for split in ("train", "test"):
        for n in range(5):
            write_pair(tmp_path, split, str(n), picture(n, 24, 32), mask)
    for file in ("train/1.png", "trainannot/3.png"):
        (tmp_path / file).write_bytes(half((tmp_path / file).read_bytes()))
    with pytest.raises(UserError, match="2 of 20 files"):
        load_data(f"segmentation:{tmp_path}", skip_bad=1)
    data = load_data(f"segmentation:{tmp_path}", skip_bad=2)
    assert (len(data.train), len(data.test)) == (3, 5)
    assert [np.array_equal(image, picture(n, 24, 32)) for image, n in zip(clean(data.train), (0, 2, 4), strict=True)]


class Opened(torch.utils.data.Dataset):
    """As torchvision's ImageFolder."""

    def __init__(self, files: list[bytes]) -> None:
        self.files, self.targets, self.classes = files, [n % 2 for n in range(len(files))], ["a", "b"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self.files[at])), self.targets[at]


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_damaged_items_of_a_dataset_are_left_out(limit):
    files = some(10)
    files[2], files[5] = half(files[2]), b"no photo"
    data = load_data(Opened(files), whole=True, skip_bad=2, memory_limit=limit)
    assert data.train.labels.tolist() == [n % 2 for n in range(10) if n not in (2, 5)]
    assert data.classes == ("a", "b")
    with pytest.raises(UserError, match="2 of 10 files"):
        load_data(Opened(files), whole=True, skip_bad=1, memory_limit=limit)


def test_what_leaves_nothing_is_refused(tmp_path):
    write_images(tmp_path, {f"train/{k}/{k}.jpg": data for k, data in zip("ab", some(2), strict=True)})
    write_images(tmp_path, {f"test/{k}/{k}.jpg": b"no photo" for k in "ab"})
    with pytest.raises(UserError, match=r"none of 2 files can be used, such as image .*test/b/b.jpg"):
        load_data(f"images:{tmp_path}", skip_bad=10)


# ---- names and links ------------------------------------------------------------------------------------------------


def test_names_may_be_of_any_script_and_of_none(tmp_path, caplog):
    twins = [normalize(form, "café") for form in ("NFC", "NFD")]
    names = [*twins, "猫", "عربي", "😀", " a;b?x=1", os.fsdecode(b"no\xfftext")]
    photo = {name: encoded(Image.fromarray(picture(n)), "PNG") for n, name in enumerate(names)}
    write_images(tmp_path / "photos", {f"{k} 猫/{name}.png": data for k in "ab" for name, data in photo.items()})
    data = whole(tmp_path / "photos", memory_limit=0, image_size=12, scratch=tmp_path / ".scratch")
    assert (len(data.train), data.classes) == (14, ("a 猫", "b 猫"))
    (tmp_path / "photos/a 猫" / os.fsdecode(b"cut\xff.png")).write_bytes(half(photo["猫"]))
    with caplog.at_level(logging.INFO):
        assert len(whole(tmp_path / "photos", skip_bad=1).train) == 14
    assert "cut" in caplog.text
    (tmp_path / "photos" / os.fsdecode(b"no\xfftext")).mkdir()
    (tmp_path / "photos" / os.fsdecode(b"no\xfftext") / "a.png").write_bytes(photo["猫"])
    with pytest.raises(UserError, match="not UTF-8"):  # a class is called so in files that are text
        whole(tmp_path / "photos", skip_bad=1)


def test_an_image_and_its_mask_may_spell_accents_in_two_ways(tmp_path):
    whole_accent, apart = (normalize(form, "café") for form in ("NFC", "NFD"))
    mask = np.zeros((12, 20), np.uint8)
    mask[:5] = 1
    for split in ("train", "test"):
        for n, name in enumerate((apart, "b")):
            write_pair(tmp_path, split, name, picture(n), mask)
        (tmp_path / f"{split}annot" / f"{apart}.png").rename(tmp_path / f"{split}annot" / f"{whole_accent}.png")
    assert len(load_data(f"segmentation:{tmp_path}").train) == 2
    for split in ("train", "test"):  # and two that differ by that alone
        write_pair(tmp_path, split, apart, picture(3), mask)
        write_pair(tmp_path, split, whole_accent, picture(4), 1 - mask)
    data = load_data(f"segmentation:{tmp_path}")
    bright = {
        tuple(image.ravel()[:9]): label
        for image, label in zip(clean(data.train), data.train.masks[:, 0, 0], strict=True)
    }
    assert bright[tuple(picture(3).ravel()[:9])] == 1
    assert bright[tuple(picture(4).ravel()[:9])] == 0


def test_links_are_followed_and_what_leads_nowhere_is_left_out(tmp_path, caplog):
    write_images(tmp_path / "store", {f"{k}/{n}.png": picture(n) for k in "xy" for n in range(3)})
    photos = tmp_path / "photos"
    (photos / "b").mkdir(parents=True)
    (photos / "a").symlink_to(tmp_path / "store/x")
    for n in range(2):
        (photos / f"b/{n}.png").symlink_to(f"../../store/y/{n}.png")
    for link, target in (("b/none.png", "nowhere.png"), ("b/1st.png", "2nd.png"), ("b/2nd.png", "1st.png"), ("c", "c")):
        (photos / link).symlink_to(target)
    for link, target in (("b/self", "."), ("b/up", "..")):
        (photos / link).symlink_to(target)
    (tmp_path / "linked").symlink_to("photos")
    with caplog.at_level(logging.INFO):
        data = whole(tmp_path / "linked")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.classes == ("a", "b")
    assert "4 left out, such as" in caplog.text
    assert ": links to nothing." in caplog.text
    assert "no images that Pillow reads" not in caplog.text
    for link in (photos / "b").iterdir():
        link.unlink()
    (photos / "b/0.png").symlink_to("nowhere.png")
    with pytest.raises(
        UserError, match=r"b holds no images that Pillow reads, but 1 link to nothing, such as .*0\.png"
    ):
        whole(photos)
    with pytest.raises(UserError, match=r"holds no class folders, but 1 link to nothing, such as .*0\.png; put"):
        whole(photos / "b")
