"""`segmentation:PATH`: what is read, that image and mask move together, and that bad folders are refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import scene, write_pair, write_scenes

from protege.data import CLEAN, Augment, InMemory, batches, choose, load_data
from protege.data.labels import UNLABELLED
from protege.data.views import VOID, boxes, draws, render, render_masks
from protege.errors import UserError

CAMVID = Path(os.environ.get("PROTEGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "camvid"


def opened(folder: Path, query: str = "", **options):
    return load_data(f"segmentation:{folder}{query}", **options)


def test_what_is_in_the_folder_comes_out(tmp_path):
    data = opened(write_scenes(tmp_path))
    assert (data.task, data.classes, data.train.shape) == ("segmentation", ("0", "1", "2"), (3, 24, 32))
    assert [len(s) for s in (data.train, data.val, data.test)] == [6, 2, 3]
    assert data.train.labels is None
    batch = data.train.fetch(torch.arange(6), CLEAN, data.augment)
    for n in range(6):
        image, mask = scene(n)
        expected = mask.astype(np.int64)
        expected[0, 0] = UNLABELLED
        assert torch.equal(batch.inputs[n].permute(1, 2, 0), torch.from_numpy(image))
        assert torch.equal(batch.labels[n], torch.from_numpy(expected))


def test_images_and_masks_folders_inside_the_splits(tmp_path):
    flat, nested = write_scenes(tmp_path / "flat"), tmp_path / "nested"
    for split in ("train", "test"):
        shutil.copytree(flat / split, nested / split / "images")
        shutil.copytree(flat / f"{split}annot", nested / split / "masks")
    assert opened(nested).train.fingerprint() == opened(flat).train.fingerprint()


def test_masks_may_have_a_palette(tmp_path):
    plain = opened(write_scenes(tmp_path)).train.fingerprint()
    for file in (tmp_path / "trainannot").iterdir():
        mask = Image.open(file).copy()
        mask.putpalette([shade for value in range(256) for shade in (value, 255 - value, 7)])
        mask.save(file)
        assert Image.open(file).mode == "P"
    assert opened(tmp_path).train.fingerprint() == plain


def test_grey_images_stay_grey(tmp_path):
    for n in range(4):
        image, mask = scene(n)
        write_pair(tmp_path, "train", f"s{n}", image[..., 0], mask)
    assert opened(tmp_path).train.shape == (1, 24, 32)


def test_without_a_test_split(tmp_path):
    data = opened(write_scenes(tmp_path / "a", train=10, val=2))
    assert (len(data.train), data.val, len(data.test)) == (10, None, 2)
    data = opened(write_scenes(tmp_path / "b", train=10))
    assert (len(data.train) + len(data.test), data.val) == (10, None)
    assert len(data.train) > len(data.test) > 0


@pytest.mark.parametrize("size", [None, 12, 30])
def test_the_shorter_side_is_resized(tmp_path, size):
    data = opened(write_scenes(tmp_path), image_size=size)
    high = size or 24
    assert data.train.shape == (3, high, high * 4 // 3)
    labels = data.train.fetch(torch.arange(6), CLEAN, Augment()).labels
    assert set(labels.unique().tolist()) <= {UNLABELLED, 0, 1, 2}  # nothing between classes


def test_other_shapes_are_cropped_to_the_commonest(tmp_path, caplog):
    write_scenes(tmp_path)
    image, mask = scene(50, height=24, width=60)
    write_pair(tmp_path, "train", "wide", image, mask)
    with caplog.at_level("INFO", "protege"):
        data = opened(tmp_path)
    assert data.train.shape == (3, 24, 32)
    assert "1 of 12 images have another shape" in caplog.text
    got = data.train.fetch(torch.tensor([6]), CLEAN, Augment())
    assert torch.equal(got.labels[0], torch.from_numpy(mask[:, 14:46].astype(np.int64)))


@pytest.mark.parametrize("augment", ["none", "shift=5,flip", "crop=0.4,flip,seed=3"])
@pytest.mark.parametrize("size", [None, 15])
def test_streams_give_what_memory_gives(tmp_path, augment, size):
    write_scenes(tmp_path)
    memory, stream = (opened(tmp_path, image_size=size, memory_limit=limit).train for limit in (2**30, 0))
    assert memory.in_memory
    assert not stream.in_memory
    index = torch.tensor([4, 0, 2])
    for view in (CLEAN, 0, 7):
        a = memory.fetch(index, view, Augment.parse(augment))
        (b,) = batches(stream, [index], view, Augment.parse(augment))
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)
    assert len({memory.fingerprint(), stream.fingerprint(), stream.part(torch.tensor([1])).fingerprint()}) == 3


def test_streams_are_decoded_by_workers(tmp_path):
    stream = opened(write_scenes(tmp_path), memory_limit=0).train
    order = [torch.tensor([1, 3]), torch.tensor([0])]
    alone, helped = (list(batches(stream, order, 2, Augment(flip=True), workers=n)) for n in (0, 1))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(alone, helped, strict=True))


def test_a_part_of_the_set_is_seeded_and_nested():
    few, more = (set(choose(None, samples=n, seed=3, count=40).tolist()) for n in (5, 20))
    assert few < more
    assert len(more) == 20
    assert few != set(choose(None, samples=5, seed=4, count=40).tolist())


# ---- views ------------------------------------------------------------------------------------------------------


def coded(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose channels are row, column and label, and the masks."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (count, height, width), generator=generator).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = VOID
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8).expand(height, width)
    pixels = torch.stack([torch.stack([rows, columns, mask], -1) for mask in masks])
    return pixels, masks


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.booleans(), st.integers(0, 20), st.integers(2, 9), st.integers(2, 9))
def test_shifts_and_flips_move_both(shift, flip, view, height, width):
    """Every pixel says where it was, so its label can be looked up; only what came from outside has none."""
    pixels, masks = coded(3, height, width)
    augment, at = Augment(shift=shift, flip=flip), torch.tensor([2, 0, 1])
    inputs = render(pixels, at, at, view, augment)
    labels = render_masks(masks, at, at, view, augment)
    shown = inputs[:, 2].long()
    known = labels != UNLABELLED
    assert torch.equal(labels[known], shown[known])
    random = draws(augment.seed, at, view, 3)
    for b in range(3):  # a naive count of what the translation brings in
        down, right = ((int(random[b, n]) * (2 * shift + 1) >> 32) - shift for n in (0, 1))
        for y in range(height):
            for x in range(width):
                column = (width - 1 - x if flip and int(random[b, 2]) >> 31 else x) + right
                outside = not (0 <= y + down < height and 0 <= column < width)
                assert known[b, y, x] == (not outside and shown[b, y, x] != VOID)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([0.2, 0.5, 1.0]), st.booleans(), st.integers(0, 20), st.integers(4, 20), st.integers(4, 20))
def test_crops_move_both(crop, flip, view, height, width):
    """A label is that of the pixel whose coordinates the interpolated image shows, to within a pixel."""
    pixels, masks = coded(2, height, width)
    augment, at = Augment(crop=crop, flip=flip), torch.tensor([1, 0])
    inputs = render(pixels, at, at, view, augment, width / height).long()
    labels = render_masks(masks, at, at, view, augment, width / height)
    for b in range(2):
        for y in range(height):
            for x in range(width):
                row, column = int(inputs[b, 0, y, x]), int(inputs[b, 1, y, x])
                near = masks[at[b], max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].long()
                assert (labels[b, y, x] if labels[b, y, x] != UNLABELLED else VOID) in near


def test_crops_keep_the_shape_of_the_scene():
    """Boxes of a wide image are wide: on average as wide as the image, not square."""
    index, ones = torch.arange(2000), torch.ones(2000, dtype=torch.int64)
    box, _ = boxes(Augment(crop=0.5), index, 0, 180 * ones, 240 * ones, 240 / 180)
    ratio = torch.log(box[:, 3].double() / box[:, 2]).exp()
    assert ratio.log().mean().exp().item() == pytest.approx(4 / 3, rel=0.02)


def test_views_do_not_depend_on_the_batch():
    samples = InMemory(*coded(8, 12, 16))
    for augment in (Augment(shift=2, flip=True), Augment(crop=0.5, flip=True)):
        whole = samples.fetch(torch.arange(8), 5, augment)
        single = samples.fetch(torch.tensor([3]), 5, augment)
        assert torch.equal(whole.inputs[3], single.inputs[0])
        assert torch.equal(whole.labels[3], single.labels[0])
        other = samples.fetch(torch.tensor([3]), 6, augment)
        assert not torch.equal(other.labels, single.labels)


# ---- classes ----------------------------------------------------------------------------------------------------


def test_named_classes(tmp_path):
    write_scenes(tmp_path, classes=3)
    assert opened(tmp_path, "?classes=sea,land,boat").classes == ("sea", "land", "boat")
    (tmp_path / "classes.txt").write_text("sea\nland\nboat\nbird\n")
    assert opened(tmp_path).classes == ("sea", "land", "boat", "bird")  # no bird in training is only a warning
    assert opened(tmp_path, "?classes=a,b,c").classes == ("a", "b", "c")


def test_ignored_values(tmp_path):
    write_scenes(tmp_path, classes=3)
    last = opened(tmp_path, "?ignore=2")
    assert last.classes == ("0", "1")
    first = opened(tmp_path, "?ignore=0&classes=land,boat")  # the classes are what is left, in order
    assert first.classes == ("land", "boat")
    whole, a, b = (d.train.fetch(torch.arange(6), CLEAN, Augment()).labels for d in (opened(tmp_path), last, first))
    assert torch.equal(a, whole.masked_fill(whole == 2, UNLABELLED))
    assert torch.equal(b, torch.where(whole > 0, whole - 1, UNLABELLED))


def test_camvid_is_known_by_its_values(tmp_path, caplog):
    with caplog.at_level("INFO", "protege"):
        data = opened(write_scenes(tmp_path, classes=12, void=11, train=8, test=2))
    assert data.classes[:3] == ("sky", "building", "pole")
    assert len(data.classes) == 11
    assert "is taken for CamVid" in caplog.text
    labels = data.train.fetch(torch.arange(8), CLEAN, Augment()).labels
    assert labels.max() == 10
    assert (labels[:, 0, 0] == UNLABELLED).all()
    assert len(opened(tmp_path, "?classes=" + ",".join("abcdefghijkl")).classes) == 12


def test_camvid_is_known_by_its_files(tmp_path):
    for split in ("train", "test"):
        write_pair(tmp_path, split, "0001TP_006690", *scene(0))
        write_pair(tmp_path, split, "Seq05VD_f00150", *scene(1))
    assert len(opened(tmp_path).classes) == 11
    image, mask = scene(2)
    mask[5, 5] = 57
    write_pair(tmp_path, "train", "0006R0_f00930", image, mask)
    with pytest.raises(UserError, match=r"0006R0_f00930.png holds the label 57; 0 to 10 is expected"):
        opened(tmp_path)


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not in {CAMVID} (set PROTEGE_DATA)")
def test_camvid():
    data = opened(CAMVID, image_size=24)
    assert [len(s) for s in (data.train, data.val, data.test)] == [367, 101, 233]
    assert (len(data.classes), data.train.shape) == (11, (3, 24, 32))


# ---- refusals ---------------------------------------------------------------------------------------------------


def other_size(folder):
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(folder / "valannot" / "s01.png")


def no_mask(folder):
    (folder / "trainannot" / "s03.png").unlink()


def no_image(folder):
    (folder / "test" / "s02.png").unlink()


def unknown_label(folder):
    image, mask = scene(7)
    mask[3, 4] = 9
    write_pair(folder, "test", "s01", image, mask)


def gap(folder):
    image, mask = scene(7)
    mask[3, 4] = 9
    write_pair(folder, "train", "s05", image, mask)


def high_label(folder):
    Image.fromarray(np.full((24, 32), 300, np.uint16)).save(folder / "trainannot" / "s00.png")


def colours(folder):
    Image.fromarray(scene(0)[0]).save(folder / "trainannot" / "s02.png")


def lossy(folder):
    (folder / "trainannot" / "s02.png").unlink()
    Image.fromarray(scene(0)[1]).save(folder / "trainannot" / "s02.jpg")


def corrupt_mask(folder):
    file = folder / "trainannot" / "s04.png"
    file.write_bytes(file.read_bytes()[:60])


def no_picture(folder):
    (folder / "trainannot" / "s04.png").write_text("not a picture")


def corrupt_image(folder):
    file = folder / "val" / "s01.png"
    file.write_bytes(file.read_bytes()[:200])


def one_class(folder):
    for file in (folder / "trainannot").iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(file)


def no_train(folder):
    shutil.rmtree(folder / "train")


def no_masks(folder):
    shutil.rmtree(folder / "testannot")


def empty(folder):
    for file in (folder / "val").iterdir():
        file.unlink()


def twice(folder):
    shutil.copy(folder / "train" / "s00.png", folder / "train" / "s00.jpg")


REFUSALS = [
    (other_size, r"mask .*valannot/s01.png is 30×24 but its image s01.png is 32×24; the same size is expected: "),
    (no_mask, r"train/s03.png has no mask; one named s03 is expected in .*trainannot: add it, or remove the other"),
    (no_image, r"testannot/s02.png has no image; one named s02 is expected in .*test: "),
    (unknown_label, r"testannot/s01.png holds the label 9; 0 to 2 is expected, as there are 3 classes: .*\?ignore=9"),
    (gap, r"trainannot/s05.png holds the label 9, but no training mask has 3; labels without gaps .*\?ignore=9"),
    (high_label, r"trainannot/s00.png holds the label 300; 0 to 255 is expected: "),
    (colours, r"trainannot/s02.png holds colours \(RGB\) where one label value a pixel is expected; "),
    (lossy, r"trainannot/s02.jpg is saved as JPEG, which does not keep values exactly; a PNG .* is expected: "),
    (corrupt_mask, r"mask .*trainannot/s04.png cannot be decoded \(.*\); replace or remove it"),
    (no_picture, r"mask .*trainannot/s04.png cannot be decoded \(not an image Pillow knows\); "),
    (corrupt_image, r"image .*val/s01.png cannot be decoded \(.*\); replace or remove it"),
    (one_class, r"has 1 class \(0\); 2 to 255 are expected, beside what is ignored: "),
    (no_train, r"has no folder 'train'; give a folder with images in train/ and masks .* in trainannot/"),
    (no_masks, r"images .*test have no masks, as there is no folder .*testannot; "),
    (empty, r"folder .*val holds no images"),
    (twice, r"s00.* and s00.* share a name; one image is expected: "),
]


@pytest.mark.parametrize(("damage", "message"), REFUSALS, ids=[damage.__name__ for damage, _ in REFUSALS])
def test_refusals(tmp_path, damage, message):
    damage(write_scenes(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?classes=a,a,b", r"class names 'a', 'a', 'b' are not all different; "),
        ("?classes=only", r"has 1 class \(only\); 2 to 255 are expected"),
        ("?classes=a,b", r"holds the label 2; 0 to 1 is expected, as there are 2 classes"),
        ("?ignore=red", r"ignore=red holds 'red'; values of masks are expected"),
        ("?ignore=256", r"ignore=256 holds '256'; values of masks are expected"),
        ("?void=11", r"has an unknown option 'void'; known are classes, ignore"),
    ],
)
def test_refused_options(tmp_path, query, message):
    with pytest.raises(UserError, match=message):
        opened(write_scenes(tmp_path), query)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; give a folder with images in train/"):
        opened(tmp_path / "nowhere")


def test_a_stream_tells_of_damage_when_it_is_opened(tmp_path):
    corrupt_mask(write_scenes(tmp_path))
    with pytest.raises(UserError, match=r"s04.png cannot be decoded"):
        opened(tmp_path, memory_limit=0)


# ---- grey levels ------------------------------------------------------------------------------------------------


def drawn(folder: Path, *values: int, save=lambda mask: Image.fromarray(mask)) -> Path:
    """Scenes whose masks have these values in stripes."""
    for split in ("train", "test"):
        for n in range(4):
            image, _ = scene(n)
            mask = np.repeat(np.array(values, np.uint8), 32)[None, :32] * np.ones((24, 1), np.uint8)
            mask[:, 10:20], mask[:, 20:] = values[1 % len(values)], values[-1]
            write_pair(folder, split, f"s{n}", image, mask)
            save(mask).save(folder / f"{split}annot" / f"s{n}.png")
    return folder


SAVED = {
    "L": Image.fromarray,
    "1": lambda mask: Image.fromarray(mask > 0),
    "RGB": lambda mask: Image.fromarray(mask).convert("RGB"),
    "LA": lambda mask: Image.fromarray(mask).convert("LA"),
    "I;16": lambda mask: Image.fromarray(mask.astype(np.uint16)),
}


@pytest.mark.parametrize("limit", [2**30, 0])
@pytest.mark.parametrize("query", ["", "?classes=background,object"])
@pytest.mark.parametrize("mode", SAVED)
def test_white_may_be_a_class(tmp_path, mode, query, limit, caplog):
    with caplog.at_level("INFO", "protege"):
        data = opened(drawn(tmp_path, 0, 255, save=SAVED[mode]), query, memory_limit=limit)
    assert data.classes == (("background", "object") if query else ("0", "1"))
    labels = data.train.fetch(torch.arange(4), CLEAN, Augment()).labels
    assert (labels[..., :10] == 0).all()
    assert (labels[..., 10:] == 1).all()
    assert ("255 too" in caplog.text) == (mode != "1")


def test_black_and_white_masks_among_grey_ones(tmp_path):
    for values, label in (((0, 255), 1), ((0, 1), 1)):
        folder = drawn(tmp_path / str(values[1]), *values)
        mask = Image.open(folder / "trainannot" / "s0.png")
        mask.point(lambda v: 255 * (v > 0)).convert("1").save(folder / "trainannot" / "s0.png")
        for limit in (2**30, 0):
            labels = opened(folder, memory_limit=limit).train.fetch(torch.arange(2), CLEAN, Augment()).labels
            assert (labels[..., 10:] == label).all()
            assert (labels[..., :10] == 0).all()


@pytest.mark.parametrize(
    ("values", "query", "labels"),
    [
        ((0, 128, 255), "", [0, 1, 2]),
        ((0, 127, 255), "?classes=a,b,c", [0, 1, 2]),
        ((0, 128, 255), "?ignore=128", [0, UNLABELLED, 1]),
        ((0, 1, 255), "", [0, 1, UNLABELLED]),
        ((0, 1, 255), "?classes=a,b,c", [0, 1, UNLABELLED]),
    ],
)
def test_which_values_are_grey_levels(tmp_path, values, query, labels):
    batch = opened(drawn(tmp_path, *values), query).train.fetch(torch.tensor([0]), CLEAN, Augment())
    assert [batch.labels[0, 0, at].item() for at in (5, 15, 25)] == labels


def test_what_would_be_one_class_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"only one class \('a'\) beside 255, which does not count"):
        opened(drawn(tmp_path / "names", 0, 255), "?classes=a,b,c")
    with pytest.raises(UserError, match="has 1 class"):
        opened(drawn(tmp_path / "ignored", 0, 255), "?ignore=255")
    folder = drawn(tmp_path / "mixed", 0, 1)
    mask = Image.open(folder / "trainannot" / "s0.png")
    mask.point(lambda v: 255 * v).save(folder / "trainannot" / "s0.png")
    with pytest.raises(UserError, match=r"by 1, such as .*s1.png, and others by 255, such as .*s0.png; .*ignore=255"):
        opened(folder)
    assert opened(folder, "?ignore=255").classes == ("0", "1")


def test_transparent_masks_are_refused(tmp_path):
    folder = drawn(tmp_path, 0, 1)
    Image.fromarray(np.zeros((24, 32, 4), np.uint8)).save(folder / "trainannot" / "s0.png")
    with pytest.raises(UserError, match=r"s0.png has transparent pixels where one label value a pixel is expected; "):
        opened(folder)
