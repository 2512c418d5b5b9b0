"""A user's own Datasets of (image, mask)."""

import numpy as np
import pytest
import torch
from PIL import Image

from protege.data import CLEAN, Augment
from protege.data.spec import load_data
from protege.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 9, 12, 3), np.uint8)
MASKS = np.random.default_rng(1).integers(0, 3, (10, 9, 12)).astype(np.uint8)
MASKS[:, 0, 0] = 255

FORMS = {
    "tensor": lambda p, m: (torch.from_numpy(p).permute(2, 0, 1), torch.from_numpy(m).long()),
    "array": lambda p, m: (p, m),
    "pil": lambda p, m: (Image.fromarray(p), Image.fromarray(m)),
    "float": lambda p, m: (torch.from_numpy(p).permute(2, 0, 1) / 255, torch.from_numpy(m).int()),
    "minus": lambda p, m: (p, np.where(m == 255, -100, m.astype(np.int64))),
}


def made(form, masks=MASKS):
    return [form(p.copy(), m) for p, m in zip(PIXELS, masks, strict=True)]


@pytest.mark.parametrize("form", FORMS)
def test_items_come_out_as_scenes(form):
    data = load_data((made(FORMS[form]), made(FORMS[form])[:4]))
    assert (data.task, data.classes, len(data.test)) == ("segmentation", ("0", "1", "2"), 4)
    batch = data.train.fetch(torch.arange(10), CLEAN, Augment())
    assert torch.equal(batch.inputs, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert torch.equal(batch.labels, torch.from_numpy(np.where(MASKS == 255, -100, MASKS.astype(np.int64))))


def test_grey_images_and_a_held_out_part():
    data = load_data(made(lambda p, m: (p[..., 0], m)))
    assert data.train.shape == (1, 9, 12)
    assert (len(data.train), len(data.test)) == (8, 2)


class Named(list):
    classes = ("road", "car")


class Restless(list):
    def __getitem__(self, at):
        image, mask = super().__getitem__(at)
        return image, np.random.default_rng().permuted(mask)


ARRAYS = made(FORMS["array"])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (Named(ARRAYS), "mask of item 0 of train dataset holds the label 2; 0 to 1 is expected"),
        (made(lambda p, m: (p, m[1:])), r"mask of shape \(8, 12\) .* own size \(9, 12\)"),
        (made(lambda p, m: (p, np.eye(256)[m])), r"mask of shape \(9, 12, 256\)"),
        (made(lambda p, m: (p, m / 2)), r"\(float64\); class numbers \(integers\)"),
        (made(lambda p, m: (p, m.astype(int) + 300)), "has the label 555 in its mask"),
        ([*ARRAYS, (PIXELS[0, 1:], MASKS[0, 1:])], r"item 10 of train dataset has shape \(8, 12, 3\) unlike"),
        (made(FORMS["array"], np.zeros_like(MASKS)), r"has 1 class \(0\); 2 to 255 are expected"),
        (Restless(ARRAYS), "differs from one reading to the next"),
    ],
)
def test_refusals(items, message):
    with pytest.raises(UserError, match=message):
        load_data(items)


@pytest.mark.parametrize("augment", ["none", "shift=3,flip", "crop=0.4,flip"])
def test_what_does_not_fit_in_memory_is_read_as_it_is_fetched(augment):
    """The same pixels and labels, held-out part included; a mask that changed is another set."""
    memory, stream = (load_data(ARRAYS, memory_limit=limit) for limit in (2**30, 100))
    assert (memory.train.in_memory, stream.train.in_memory) == (True, False)
    for split in ("train", "test"):
        ours, theirs = stream.sets[split], memory.sets[split]
        index = torch.arange(len(theirs)).flip(0)
        for view in (CLEAN, 0, 3):
            ours_then, theirs_then = (s.fetch(index, view, Augment.parse(augment)) for s in (ours, theirs))
            assert torch.equal(ours_then.inputs, theirs_then.inputs)
            assert torch.equal(ours_then.labels, theirs_then.labels)
    place = torch.tensor([2, 0, 1])
    index = torch.arange(4)
    renamed = [data.train.relabelled(place).fetch(index, 1, Augment(flip=True)).labels for data in (memory, stream)]
    assert torch.equal(*renamed)
    other = [(image, mask.copy()) for image, mask in ARRAYS]
    other[3][1][5, 5] = (other[3][1][5, 5] + 1) % 3
    prints = {load_data((items, items), memory_limit=100).train.fingerprint() for items in (ARRAYS, other)}
    assert len(prints) == 2


def test_what_files_are_for():
    with pytest.raises(UserError, match="resize both in the Dataset"):
        load_data(ARRAYS, image_size=8)


def test_a_label_that_is_no_number_is_named_by_its_kind():
    with pytest.raises(UserError, match=r"has the label \[0.0, 0.0, 0.0\], with 0 classes; one class an image"):
        load_data([(p, torch.zeros(3)) for p in PIXELS])


def labels_of(items, **how):
    data = load_data(items, **how)
    return data, data.train.fetch(torch.arange(len(data.train)), CLEAN, Augment()).labels


BINARY = MASKS % 2  # 0 and 1; what was 255 is 1
WHITE = {
    "array": lambda p, m: (p, m * np.uint8(255)),
    "long": lambda p, m: (p, torch.from_numpy(m).long()[None] * 255),
    "bool": lambda p, m: (p, m > 0),
    "L": lambda p, m: (p, Image.fromarray(m * np.uint8(255))),
    "1": lambda p, m: (p, Image.fromarray(m > 0)),
    "RGB": lambda p, m: (p, Image.fromarray(m * np.uint8(255)).convert("RGB")),
    "minus": lambda p, m: (p, np.where(MASKS[0] == 255, -100, m.astype(np.int64) * 255)),
}


@pytest.mark.parametrize("form", WHITE)
def test_white_may_be_a_class(form):
    items = made(WHITE[form], BINARY)
    data, labels = labels_of((items, items))
    assert data.classes == ("0", "1")
    wanted = torch.from_numpy(BINARY.astype(np.int64))
    wanted = wanted.masked_fill(torch.from_numpy(MASKS[0] == 255), -100) if form == "minus" else wanted
    assert torch.equal(labels, wanted)


def test_black_and_white_masks_among_others():
    for scale in (1, 255):
        items = [
            WHITE["1"](p, m) if n % 2 else (p, m * scale) for n, (p, m) in enumerate(zip(PIXELS, BINARY, strict=True))
        ]
        assert torch.equal(labels_of((items, items))[1], torch.from_numpy(BINARY.astype(np.int64)))


def test_what_would_be_one_class_is_refused():
    with pytest.raises(UserError, match=r"only one class \('road'\) beside 255, which does not count"):
        load_data(type("Three", (list,), {"classes": ("road", "car", "sky")})(made(WHITE["array"], BINARY)))
    mixed = [(p, m * (255 if n % 2 else 1)) for n, (p, m) in enumerate(zip(PIXELS, BINARY, strict=True))]
    with pytest.raises(UserError, match=r"by 1, such as .* item 0 of train .*, and others by 255, .* item 1 of"):
        load_data(mixed)


def test_turned_images_and_masks_are_upright():
    tag = Image.Exif()
    tag[0x0112] = 3

    def turned(array):
        image = Image.fromarray(array).transpose(Image.Transpose.ROTATE_180)
        image.info["exif"] = tag.tobytes()
        return image

    items = made(lambda p, m: (turned(p), Image.fromarray(m)))
    for form in (lambda p, m: (turned(p), Image.fromarray(m)), lambda p, m: (turned(p), turned(m))):
        items = made(form)
        data, labels = labels_of((items, items))
        assert torch.equal(data.train.pixels, torch.from_numpy(PIXELS))
        assert torch.equal(labels, torch.from_numpy(np.where(MASKS == 255, -100, MASKS.astype(np.int64))))


def test_grey_among_colour_scenes():
    items = made(lambda p, m: (p[..., 0] if p[0, 0, 0] % 2 else p, m))
    assert load_data(items).train.shape == (3, 9, 12)
