"""A user's own map-style Dataset, with images in every form that is understood."""

import gc
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from protege.data import CLEAN, Augment, InMemory, Streamed, batches, load_data
from protege.data.datasets import Items
from protege.data.repeatable import Watch
from protege.errors import UserError


def random_images(count: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


class Own(Dataset):
    """A user's dataset, its images as `kind`."""

    def __init__(self, count=20, kind="pil", targets=False):
        self.pixels, self.kind, self.read = random_images(count), kind, 0
        if targets:
            self.targets = [i % 2 for i in range(count)]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.read += 1
        image = self.pixels[i]
        if self.kind == "pil":
            return Image.fromarray(image), i % 2
        if self.kind == "float":
            return torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.tensor(i % 2)
        return (image if self.kind == "array" else torch.from_numpy(image).permute(2, 0, 1)), np.int64(i % 2)


@pytest.mark.parametrize("kind", ["pil", "array", "tensor", "float"])
@pytest.mark.parametrize("targets", [False, True])
def test_own_datasets(kind, targets):
    data = load_data((Own(20, kind, targets), Own(6, kind, targets)))
    assert isinstance(data.train, InMemory)
    stream = load_data((Own(20, kind, targets), Own(6, kind, targets)), memory_limit=100)
    assert isinstance(stream.train, Streamed)
    assert torch.equal(data.train.pixels, torch.from_numpy(random_images(20)))
    assert data.train.labels.tolist() == [i % 2 for i in range(20)]
    assert torch.equal(data.train.labels, stream.train.labels)
    augment = Augment(shift=2, flip=True)
    for batch in batches(stream.train, torch.arange(20).split(7), 4, augment, workers=1):
        assert torch.equal(batch.inputs, data.train.fetch(batch.index, 4, augment).inputs)
    assert stream.train.fingerprint() != stream.test.fingerprint()


def test_one_dataset_is_split_and_data_is_kept():
    data = load_data(Own(50))
    assert len(data.train) + len(data.test) == 50
    assert all(2 <= count <= 8 for count in data.test.labels.bincount().tolist())
    stream = load_data(Own(50), memory_limit=100)
    assert torch.equal(
        stream.test.fetch(torch.arange(len(data.test)), CLEAN, Augment()).inputs.permute(0, 2, 3, 1), data.test.pixels
    )
    assert load_data(data) is data


def test_pil_images_of_a_dataset_are_resized_on_request():
    assert load_data(Own(), image_size=4).train.shape == (3, 4, 4)


def stream(dataset):
    """The set read item by item, as one that does not fit in memory."""
    items = Items(dataset)
    return Streamed(items, torch.as_tensor(items.read_all(Watch(), keep=False)[1]))


def test_known_targets_save_reading_the_items():
    own = Own(3000, targets=True)
    stream(own)
    assert own.read < 600


def test_a_part_reads_no_item_again():
    own = Own(100)
    whole = stream(own)
    before, index = own.read, torch.tensor([5, 8, 30])
    part = whole.part(index)
    assert own.read == before
    assert torch.equal(part.labels, whole.labels[index])


@pytest.mark.parametrize("listed", [[i // 10 for i in range(20)], ["cat", "dog"] * 10, [[0], [1, 2]] * 10])
def test_lists_that_are_not_the_items_labels_are_not_believed(listed):
    own = Own(20)
    own.targets = listed
    assert stream(own).labels.tolist() == [i % 2 for i in range(20)]


def test_a_transform_of_labels_stands_behind_the_list():
    own = Own(200, targets=True)
    own.targets[150], own.target_transform = 1, lambda label: label  # one of many, that nobody would look at
    assert stream(own).labels.tolist() == [i % 2 for i in range(200)]


class Noisy(Dataset):
    """Hands out other labels than those it lists, for one item in `every`."""

    def __init__(self, count=200, every=13):
        self.images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).to(torch.uint8)
        self.targets = [i % 4 for i in range(count)]
        self.given = [(t + 1) % 4 if i % every == every - 1 else t for i, t in enumerate(self.targets)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.given[i]


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_the_items_own_labels_are_taken(memory_limit):
    noisy = Noisy()
    for dataset, labels in (
        (noisy, noisy.given),
        (Subset(noisy, list(range(199, 0, -1))), noisy.given[:0:-1]),
        (ConcatDataset([noisy, Noisy(50, 10**6)]), [*noisy.given, *Noisy(50).targets]),
    ):
        assert load_data(dataset, whole=True, memory_limit=memory_limit).train.labels.tolist() == labels


def test_a_listed_label_that_turns_out_wrong_is_told_when_its_item_is_read():
    noisy = Noisy(1000, every=10**6)
    noisy.given[502] = 3  # none of those looked at when the set is opened
    data = load_data(noisy, whole=True, memory_limit=0)
    assert data.train.labels.tolist() == noisy.targets
    for workers in (0, 1):
        with pytest.raises(UserError, match="item 502 of train dataset has the label 3 but is listed with 2"):
            list(batches(data.train, torch.arange(1000).split(100), CLEAN, Augment(), workers=workers))
    del noisy.targets  # the remedy
    assert load_data(noisy, whole=True, memory_limit=0).train.labels.tolist() == noisy.given


def test_labels_listed_by_the_whole_save_reading_its_parts():
    own = Own(3000, targets=True)
    parts = random_split(own, [0.6, 0.4], torch.Generator().manual_seed(0))
    assert stream(parts[0]).labels.tolist() == [own.targets[i] for i in parts[0].indices]
    assert stream(ConcatDataset(parts)).labels.tolist() == [own.targets[i] for p in parts for i in p.indices]
    assert own.read < 1500


class Drawn(Dataset):
    """Forty grey images, each of them brighter by one where ``draw(i)`` says so."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.full((1, 4, 4), i + int(self.draw(i)), dtype=torch.uint8), i % 2


OWN, PYTHONS, TORCHS = np.random.default_rng(0), random.Random(0), torch.Generator()


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize(
    "draw",
    [
        lambda i: torch.rand(()) < 1e-9,  # never seen in values
        lambda i: np.random.rand() < 1e-9,
        lambda i: random.random() < 1e-9,
        lambda i: i == 29 and random.random() < 1e-9,
        lambda i: OWN.random() < 1e-9,
        lambda i: PYTHONS.random() < 1e-9,
        lambda i: torch.rand((), generator=TORCHS) < 1e-9,
        lambda i: np.random.default_rng().random() < 0.5,  # made anew and so seen in values alone
    ],
)
def test_random_items_are_found_however_seldom_they_differ(draw, memory_limit):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match="remove random transforms from the dataset and use augment"):
        load_data(Drawn(draw), memory_limit=memory_limit)
    after = torch.get_rng_state()
    assert torch.equal(before, after) or draw(0) in (0, 1)


def seeded(i):
    torch.manual_seed(i)
    random.seed(i)
    np.random.seed(i)
    return torch.rand(()) + random.random() + np.random.rand() < 1


@pytest.mark.parametrize("memory_limit", [0, 2**30])
@pytest.mark.parametrize("draw", [seeded, lambda i: np.random.default_rng(i).random() < 0.5, lambda i: False])
def test_items_that_seed_what_they_draw_from_are_the_same_each_time(draw, memory_limit):
    assert len(load_data(Drawn(draw), whole=True, memory_limit=memory_limit).train) == 40


def test_masks_drawn_at_random_are_found():
    class Scenes(Drawn):
        def __getitem__(self, i):
            return super().__getitem__(i)[0], torch.arange(16).view(4, 4) % 2

    with pytest.raises(UserError, match="remove random transforms"):
        load_data(Scenes(lambda i: torch.rand(()) < 1e-9))
    assert load_data(Scenes(lambda i: False)).task == "segmentation"


IMAGES = torch.from_numpy(random_images(20))  # [N, H, W, C]
CLASSES = [i % 2 for i in range(20)]
FIRST = IMAGES.permute(0, 3, 1, 2)


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)


PAIRS = list(zip(FIRST, CLASSES, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        PAIRS,
        Stream(PAIRS),
        (FIRST, torch.tensor(CLASSES)),
        (IMAGES.numpy(), np.array(CLASSES)),
        (IMAGES.numpy(), CLASSES),
        (FIRST.numpy(), np.array(CLASSES)[:, None]),  # channels first, labels as a column
        (IMAGES, torch.eye(2)[CLASSES]),  # channels last, one-hot
        TensorDataset(FIRST, torch.tensor(CLASSES)),
        [(image, label, number) for number, (image, label) in enumerate(PAIRS)],
        [{"image": image, "label": label} for image, label in PAIRS],
        [{"img": image, "fine_label": label, "coarse_label": 0} for image, label in PAIRS],
        [{"pixels": image, "kind": label} for image, label in PAIRS],
        [(image, torch.tensor(label)) for image, label in PAIRS],
        [(image, np.array(label)) for image, label in PAIRS],
        [(image, torch.tensor([label])) for image, label in PAIRS],
        [(image, np.int32(label)) for image, label in PAIRS],
        [(image, bool(label)) for image, label in PAIRS],
        [(image, [1 - label, label]) for image, label in PAIRS],
        [(image, ["cat", "dog"][label]) for image, label in PAIRS],
        (IMAGES.numpy(), np.array(["cat", "dog"])[CLASSES]),
        Subset([(image, np.eye(2)[label]) for image, label in PAIRS], range(20)),
    ],
)
def test_whatever_form_items_have_they_are_the_same_set(given):
    data = load_data(given, whole=True)
    assert torch.equal(data.train.pixels, IMAGES)
    assert data.train.labels.tolist() == CLASSES
    assert data.classes in (("0", "1"), ("cat", "dog"))
    again = load_data(given, whole=True, memory_limit=0).train
    assert torch.equal(again.fetch(torch.arange(20), CLEAN, Augment()).inputs, FIRST)
    assert again.labels.tolist() == CLASSES


def test_splits_by_name():
    pair = (IMAGES.numpy(), np.array(CLASSES))
    data = load_data({"train": PAIRS, "validation": PAIRS[:4], "Test": PAIRS[:6]})
    assert (len(data.train), len(data.val), len(data.test)) == (20, 4, 6)
    assert len(load_data({"train": pair, "test": pair}).test) == len(load_data((pair, pair)).test) == 20
    assert 2 <= len(load_data({"train": PAIRS}).test) <= 7
    words = [(image, "dog" if label else "cat") for image, label in PAIRS]
    for limit in (0, 2**30):
        data = load_data((words, words[1::2]), memory_limit=limit)
        assert (data.classes, data.test.labels.tolist()) == (("cat", "dog"), [1] * 10)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"train": PAIRS, "extra": PAIRS}, "a dict with the keys 'train', 'extra'"),
        ({"train": PAIRS, "val": PAIRS, "validation": PAIRS}, "a dict with the keys"),
        ({"test": PAIRS}, "a dict without 'train'"),
        ((PAIRS, PAIRS, PAIRS), "a tuple of 3"),
        ((IMAGES, CLASSES[:7]), "20 images and 7 labels"),
        ((PAIRS, []), "test dataset is empty"),
        ([], "train dataset is empty"),
        ({"train": PAIRS, "test": 3}, "test dataset is a int; a map-style Dataset"),
        (Stream(iter(())), "map-style"),
        (DataLoader(PAIRS), r"a DataLoader; a map-style Dataset, .* is expected: give its \.dataset"),
        ([(label, image) for image, label in PAIRS], "item 0 of train dataset has its label first"),
        ([{"a": FIRST[0], "b": FIRST[0], "c": 1}], "a dict with the keys 'a', 'b', 'c'"),
        ([(FIRST[0], 1.5), PAIRS[0]], r"has the label 1.5; .*\(regression\) are not supported"),
        ([(FIRST[0], torch.tensor(1.0)), PAIRS[0]], r"\(regression\) are not supported"),
        ([(FIRST[0], [0.2, 3.5]), PAIRS[0]], r"\[0.2, 3.5\]; .*\(regression, soft labels\) are not supported"),
        ([(FIRST[0], torch.tensor([1, 0, 1])), PAIRS[0]], r"2 classes; .*\(multi-label\) are not supported"),
        ([(FIRST[0], ["cat", "dog"]), PAIRS[0]], r"\(multi-label\) are not supported"),
        ([(FIRST[0], {"a": 1}), PAIRS[0]], "has the label 'dict'; an integer from 0 or a class name"),
        (
            [(FIRST[0], "cat"), PAIRS[1]],
            "label 1 of train sample 1 in .* is none of the names 'cat', which are",
        ),
        ((PAIRS, [(FIRST[0], "cat")]), "label .* of t(rain|est) sample 0 in .*all names, or all numbers"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_sentence(given, says):
    with pytest.raises(UserError, match=says) as caught:
        load_data(given)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [0, 17])
def test_an_item_that_cannot_be_read_is_named(at):
    class Broken(Own):
        def __getitem__(self, i):
            return {}["gone"] if i == at else super().__getitem__(i)

    for limit in (0, 2**30):
        with pytest.raises(UserError, match=rf"item {at} of train dataset cannot be read \(KeyError: 'gone'\)"):
            load_data(Broken(), memory_limit=limit)


def test_an_image_size_is_applied_or_refused():
    wanted = load_data(Own(20, "pil"), image_size=4, whole=True).train.pixels
    assert wanted.shape == (20, 4, 4, 3)
    for kind in ("array", "tensor", "float"):
        assert torch.equal(load_data(Own(20, kind), image_size=4, whole=True).train.pixels, wanted)
    data = load_data(Own(20))
    assert load_data(data, image_size=6) is data
    for other in (data, load_data("digits"), load_data("synthetic:")):
        with pytest.raises(UserError, match="image size 32 cannot be had of Data"):
            load_data(other, image_size=32)


def test_images_of_other_channels_than_grey_and_colour_are_taken_as_they_are():
    images = torch.randint(0, 256, (20, 4, 6, 6), dtype=torch.uint8)
    data = load_data((images, CLASSES), whole=True)
    assert torch.equal(data.train.fetch(torch.arange(20), CLEAN, Augment()).inputs, images)
    assert load_data((images, CLASSES), image_size=3).train.shape == (4, 3, 3)


def test_what_is_no_data_says_so(tmp_path):
    with pytest.raises(UserError, match="data is missing; give"):
        load_data(None)
    with pytest.raises(UserError, match="is not known; write 'images:"):
        load_data(tmp_path)
    pixels = torch.zeros(8, 3, 4, 4)
    with pytest.raises(UserError, match=r"label -1 of train sample 3 .* below 0"):
        load_data([(image, number % 3 - number % 2) for number, image in enumerate(pixels)])
    pixels[2, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="item 2 of train dataset has pixels that are not finite"):
        load_data([(image, number % 2) for number, image in enumerate(pixels)])


def test_generators_of_a_process_that_has_frozen_what_it_has_are_watched():
    gc.freeze()
    for draw in (random.random, np.random.random, lambda: torch.rand(1)):
        watch = Watch()
        draw()
        assert len(watch.moved()) == 1
