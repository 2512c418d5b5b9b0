"""A user's own map-style Dataset, with images in every form that is understood."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from protege.data import CLEAN, Augment, InMemory, Mapped, batches, load_data
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
    assert isinstance(stream.train, Mapped)
    assert torch.equal(data.train.pixels, torch.from_numpy(random_images(20)))
    assert data.train.labels.tolist() == [i % 2 for i in range(20)]
    assert torch.equal(data.train.labels, stream.train.labels)
    augment = Augment(shift=2, flip=True)
    for batch in batches(stream.train, torch.arange(20).split(7), 4, augment, workers=1):
        assert torch.equal(batch.inputs, data.train.fetch(batch.index, 4, augment).inputs)
    assert stream.train.fingerprint() != stream.test.fingerprint()


def test_one_dataset_is_split_and_data_is_kept():
    data = load_data(Own(50))
    assert len(data.train) == 40
    assert data.test.labels.bincount().tolist() == [5, 5]
    stream = load_data(Own(50), memory_limit=100)
    assert torch.equal(
        stream.test.fetch(torch.arange(10), CLEAN, Augment()).inputs.permute(0, 2, 3, 1), data.test.pixels
    )
    assert load_data(data) is data


def test_pil_images_of_a_dataset_are_resized_on_request():
    assert load_data(Own(), image_size=4).train.shape == (3, 4, 4)


def test_known_targets_save_reading_the_items():
    own = Own(1000, targets=True)
    Mapped(own)
    assert own.read < 100


def test_a_part_reads_no_label_again():
    own = Own(100)
    whole = Mapped(own)
    before, index = own.read, torch.tensor([5, 8, 30])
    part = whole.part(index)
    assert own.read - before == 1  # for its shape
    assert torch.equal(part.labels, whole.labels[index])


@pytest.mark.parametrize("listed", [[i // 10 for i in range(20)], ["cat", "dog"] * 10, [[0], [1, 2]] * 10])
def test_lists_that_are_not_the_items_labels_are_not_believed(listed):
    own = Own(20)
    own.targets = listed
    assert Mapped(own).labels.tolist() == [i % 2 for i in range(20)]


def test_a_transform_of_labels_stands_behind_the_list():
    own = Own(200, targets=True)
    own.targets[150], own.target_transform = 1, lambda label: label  # one of many, that nobody would look at
    assert Mapped(own).labels.tolist() == [i % 2 for i in range(200)]


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
