"""Which samples are held out of a set without splits: by what each holds, so that none is that was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_data_sets import random_images, write_parquet
from torch.utils.data import Subset, TensorDataset

import protege
from protege.data import CLEAN, Data, load_data
from protege.data.split import hold_out_by_content
from protege.models import held_out_by

PLACES = st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=60)


@given(PLACES, PLACES, st.floats(0.1, 0.5))
def test_what_comes_on_top_moves_nothing_from_training_to_test(first, more, share):
    """Except in a class that had nothing on one side, of which one sample had to be moved."""

    def held(samples):
        labels, places = (torch.tensor(values) for values in zip(*samples, strict=True))
        _, test = hold_out_by_content(places.double(), labels, share)
        return {samples[at] for at in test.tolist()}

    before, after = held(first), held(first + more)
    for label in range(3):
        own = [place for k, place in first if k == label]
        if own and min(own) < share <= max(own):
            assert {s for s in first if s[0] == label} & after == {s for s in before if s[0] == label}
        both = {place for k, place in first + more if k == label}
        if len(both) > 1:
            assert 0 < len([s for s in after if s[0] == label]) < len([s for s in first + more if s[0] == label])


def folder(root: Path, names: list[list[str]], images: np.ndarray) -> str:
    at = 0
    for label, own in enumerate(names):
        (root / f"class{label}").mkdir(parents=True, exist_ok=True)
        for name in own:
            Image.fromarray(images[at]).save(root / f"class{label}" / f"{name}.png")
            at += 1
    return f"images:{root}"


def seen(data: Data, split: str) -> set[bytes]:
    samples = getattr(data, split)
    pixels = samples.fetch(torch.arange(len(samples)), CLEAN, data.augment).inputs
    return {image.numpy().tobytes() for image in pixels}


IMAGES = random_images(90, 8, 8)
GROWN = np.concatenate([IMAGES[60:75], IMAGES[:30], IMAGES[75:], IMAGES[30:60]])  # the new ones first in each class
LABELS, MORE = torch.arange(60) // 30, torch.arange(90) // 45


def folders(root, images, labels):
    counts = labels.bincount().tolist()
    return folder(root, [[f"{at:03}" for at in range(count)] for count in counts], images)


def parquet(root, images, labels):
    root.mkdir(exist_ok=True)
    write_parquet(root / "train.parquet", images, labels.numpy())
    return f"parquet:{root}"


def scenes(root, images, labels):
    for name in ("train", "trainannot"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for at, image in enumerate(images):
        Image.fromarray(image).save(root / "train" / f"{at:03}.png")
        Image.fromarray((image[..., 0] // 128).astype(np.uint8)).save(root / "trainannot" / f"{at:03}.png")
    return f"segmentation:{root}"


def dataset(root, images, labels):
    return TensorDataset(torch.from_numpy(images).movedim(3, 1), labels)


class Listing:
    """Images in files, which it lists as torchvision's Datasets do."""

    def __init__(self, root):
        self.samples = [(str(path), int(path.parent.name[-1])) for path in sorted(root.rglob("*.png"))]
        self.targets = [label for _, label in self.samples]
        self.read = []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, at):
        self.read.append(at)
        path, label = self.samples[at]
        return Image.open(path), label


def listing(root, images, labels):
    folders(root, images, labels)
    return Subset(Listing(root), list(range(len(images)))[::-1])


def masked(root, images, labels):
    return TensorDataset(torch.from_numpy(images).movedim(3, 1), torch.from_numpy(images[..., 0] // 128).long())


@pytest.mark.parametrize("limit", [4 << 30, 2000])
@pytest.mark.parametrize("kind", [folders, parquet, scenes, dataset, listing, masked])
def test_an_image_that_was_trained_on_is_never_held_out(kind, limit, tmp_path):
    if kind is masked and limit == 2000:
        pytest.skip("refused: Datasets with masks are read into memory")
    options = {"memory_limit": limit, "scratch": tmp_path / "scratch"}
    first = load_data(kind(tmp_path / "first", IMAGES[:60], LABELS), **options)
    grown = load_data(kind(tmp_path / "grown", GROWN, MORE), **options)
    assert first.held_out == grown.held_out == "content"
    assert not seen(first, "train") & seen(grown, "test")
    assert seen(first, "test") <= seen(grown, "test")
    assert 0.1 < len(grown.test) / 90 < 0.32
    if grown.train.labels is not None:
        for samples in (grown.train, grown.test):
            assert set(samples.labels.tolist()) == {0, 1}


def test_files_that_a_dataset_lists_are_not_decoded_to_choose(tmp_path):
    """Of a large set that would take hours; and the same are chosen as of the folder itself."""
    images = random_images(600, 8, 8)
    spec = folders(tmp_path, images, torch.arange(600) // 300)
    given = Listing(tmp_path)
    data = load_data(given, memory_limit=2000)
    assert len({*given.read}) < 600
    assert seen(data, "test") == seen(load_data(spec), "test") == seen(load_data(given), "test")


def test_size_and_memory_do_not_choose(tmp_path):
    spec = folders(tmp_path / "images", IMAGES[:60], LABELS)
    whole = [load_data(spec, image_size=size, memory_limit=limit) for size in (None, 16) for limit in (4 << 30, 100)]
    assert len({data.places for data in whole}) == 1


def test_nothing_to_hold_out_of_two_classes_of_one(tmp_path):
    data = load_data(folder(tmp_path / "images", [["a"], ["b"]], IMAGES))
    assert data.test is None


def test_a_model_of_before_keeps_its_way(tmp_path, caplog):
    """What a folder tells decides, of students too that learn from such a teacher, and when a run is resumed."""
    spec = folders(tmp_path / "images", IMAGES[:60], LABELS)
    settings = {"epochs": 1, "precision": "fp32", "workers": 0}
    protege.train("zoo:mlp?hidden=4", spec, tmp_path / "new", **settings)
    new, old = tmp_path / "new" / "student", tmp_path / "old"
    assert json.loads((new / "config.json").read_text())["held_out"] == held_out_by(new) == "content"
    protege.load_model(str(new)).save(old)
    config = json.loads((old / "config.json").read_text())
    del config["held_out"]
    (old / "config.json").write_text(json.dumps(config))
    assert held_out_by(old) == held_out_by("zoo:mlp", str(old)) == "position"
    assert held_out_by("zoo:mlp", None) == "content"
    caplog.clear()
    with caplog.at_level("WARNING", "protege"):
        protege.train(str(old), spec, tmp_path / "again", **settings)
    assert "are chosen by their order, as they were then" in caplog.text
    assert held_out_by(tmp_path / "again" / "student") == "position"
    by_order = load_data(spec, held_out="position")
    assert protege.evaluate(str(old), spec) == protege.evaluate(str(old), by_order)
    assert protege.evaluate(str(new), spec) == protege.evaluate(str(new), load_data(spec))
    protege.train(out=tmp_path / "again", resume=True)
    log = tmp_path / "new" / "metrics.jsonl"  # as runs before kept it, without the way
    start, *rest = log.read_text().splitlines()
    event = json.loads(start)
    del event["origin"]["held_out"]
    log.write_text("\n".join([json.dumps(event), *rest]))
    with pytest.raises(protege.UserError, match="another data set"):  # chosen by position, as it would have been
        protege.train(out=tmp_path / "new", resume=True)
