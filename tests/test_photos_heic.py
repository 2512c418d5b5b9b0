"""Photos of iPhones are read by pillow-heif, where that is installed."""

import io

import numpy as np
import pytest
from photos import clean, picture, stored, tagged, whole, write_images
from PIL import Image
from scenes import write_pair
from test_photos import DISPLAY_P3, as_srgb, wide

from protege.data import load_data
from protege.errors import UserError

heif = pytest.importorskip("pillow_heif")


def heic(image: Image.Image, **how) -> bytes:
    out = io.BytesIO()
    heif.from_pillow(image).save(out, quality=100, chroma=444, **how)
    return out.getvalue()


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_heic_is_read_upright_and_in_srgb(tmp_path, limit):
    known, files = wide(DISPLAY_P3), {}
    for n, (name, orientation) in enumerate(
        {"a/0.heic": 1, "a/1.HEIC": 6, "b/0.heif": 3, "b/1.jpg": 8, "b/2": 5}.items()
    ):
        shown = picture(n, 32, 48)
        image = Image.fromarray(shown) if orientation == 1 else stored(shown, orientation)
        files[name] = heic(image, exif=tagged(orientation), icc_profile=known)
    data = whole(write_images(tmp_path, files), memory_limit=limit, image_size=None if limit else 32)
    images = clean(data.train).astype(float)
    for n, image in enumerate(images):
        meant = as_srgb(picture(n, 32, 48), DISPLAY_P3)
        assert np.abs(image - (meant if limit else meant[:, 8:40])).mean() < 3
        assert np.abs(meant - picture(n, 32, 48)).mean() > 5


def test_a_heic_that_is_cut_short_is_named(tmp_path):
    photo = heic(Image.fromarray(picture(0, 64, 64)))
    write_images(tmp_path, {"a/0.heic": photo, "b/0.heic": photo[: len(photo) // 2]})
    with pytest.raises(UserError, match=r"b/0.heic cannot be decoded"):
        clean(whole(tmp_path).train)


def test_masks_in_heic_are_refused(tmp_path):
    for split in ("train", "test"):
        write_pair(tmp_path, split, "a", picture(0), np.zeros((12, 20), np.uint8))
    (tmp_path / "trainannot/a.png").write_bytes(heic(Image.new("L", (20, 12))))
    with pytest.raises(UserError, match=r"a.png is saved as HEIF, which does not keep values exactly"):
        load_data(f"segmentation:{tmp_path}")
