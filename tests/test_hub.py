"""Sets that Hugging Face's `datasets` has saved: `hub:PATH`, read as the same images in files are."""

import numpy as np
import pytest
import torch
from PIL import Image

from protege.data import CLEAN, Augment, batches, load_data
from protege.errors import UserError

datasets = pytest.importorskip("datasets", exc_type=ImportError)

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 9, 11, 3), np.uint8)
NAMES = ["ant", "bee"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))


def made(columns: dict, **features) -> "datasets.Dataset":
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def photos(count: int = 40, labels=None, kind=None) -> "datasets.Dataset":
    labels = [i % 2 for i in range(count)] if labels is None else labels
    columns = {"image": [Image.fromarray(image) for image in PIXELS[:count]], "label": labels}
    return made(columns, image=datasets.Image(), label=kind or datasets.ClassLabel(names=NAMES))


def saved(folder, **splits) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return f"hub:{folder}"


@pytest.mark.parametrize("limit", [1 << 30, 100])
def test_images_and_labels_of_every_split(tmp_path, limit):
    spec = saved(tmp_path / "set", train=photos(), validation=photos(6), test=photos(4), extra=photos(2))
    data = load_data(spec, memory_limit=limit)
    assert {split: len(part) for split, part in data.sets.items()} == {"train": 40, "val": 6, "test": 4}
    assert (data.classes, data.numbering, data.train.in_memory) == (("ant", "bee"), "given", limit > 100)
    for workers in (0, 1):
        (batch,) = batches(data.train, [torch.arange(40)], CLEAN, Augment(), workers=workers)
        assert torch.equal(batch.inputs.permute(0, 2, 3, 1), torch.from_numpy(PIXELS))
        assert batch.labels.tolist() == [i % 2 for i in range(40)]
    other = saved(tmp_path / "other", train=photos(labels=[0] * 39 + [1]), test=photos(4))
    assert load_data(other, memory_limit=limit).train.fingerprint() != data.train.fingerprint()
    assert load_data(spec, memory_limit=limit).train.fingerprint() == data.train.fingerprint()


def test_one_split_is_held_out_of_by_content_and_files_are_as_images(tmp_path):
    photos().save_to_disk(str(tmp_path / "one"))
    folder = tmp_path / "files"
    for at, image in enumerate(PIXELS):
        (folder / NAMES[at % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / NAMES[at % 2] / f"{at}.png")
    hub, files = load_data(f"hub:{tmp_path / 'one'}"), load_data(f"hub:{folder}")
    assert hub.held_out == files.held_out == "content"
    assert len(hub.train) + len(hub.test) == len(files.train) + len(files.test) == 40
    images = load_data(f"images:{folder}")
    assert sorted(len(part) for part in images.sets.values()) == sorted(len(part) for part in files.sets.values())


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([3 * (i % 2) for i in range(40)], "int64", ("0", "1", "2", "3")),
        (["dog" if i % 2 else "cat" for i in range(40)], "string", ("cat", "dog")),
    ],
)
def test_labels_without_names_and_names_as_labels(tmp_path, labels, kind, classes):
    spec = saved(tmp_path / "set", train=photos(40, labels, datasets.Value(kind)))
    data = load_data(spec, whole=True)
    assert data.classes == classes
    assert [data.classes[k] for k in data.train.labels.tolist()] == list(map(str, labels))


def test_columns_by_name_and_test_splits_without_labels(tmp_path, caplog):
    columns = {
        "before": [Image.fromarray(image) for image in PIXELS],
        "after": [Image.fromarray(255 - image) for image in PIXELS],
        "coarse": [0, 1, 1, 0] * 10,
        "fine": [0, 1, 2, 3] * 10,
    }
    kinds = {"coarse": datasets.ClassLabel(num_classes=2), "fine": datasets.ClassLabel(num_classes=4)}
    train = made(columns, before=datasets.Image(), after=datasets.Image(), **kinds)
    test = train.map(lambda row: {"fine": -1})
    spec = saved(tmp_path / "set", train=train, test=test)
    with caplog.at_level("INFO", "protege"):
        data = load_data(f"{spec}?image=after&label=fine")
    assert "the test split of hub set" in caplog.text
    assert data.held_out == "content"
    shown = load_data(f"{spec}?image=after&label=coarse").train.fetch(torch.arange(40), CLEAN, Augment())
    assert torch.equal(shown.inputs.permute(0, 2, 3, 1), torch.from_numpy(255 - PIXELS))
    assert shown.labels.tolist() == columns["coarse"]


@pytest.mark.parametrize("limit", [1 << 30, 100])
def test_a_second_column_of_images_has_masks(tmp_path, limit):
    masks = np.random.default_rng(1).integers(0, 3, (40, 9, 11)).astype(np.uint8)
    columns = {"image": list(map(Image.fromarray, PIXELS)), "annotation": list(map(Image.fromarray, masks))}
    spec = saved(tmp_path / "set", train=made(columns, image=datasets.Image(), annotation=datasets.Image()))
    data = load_data(spec, whole=True, memory_limit=limit)
    assert (data.task, data.classes) == ("segmentation", ("0", "1", "2"))
    batch = data.train.fetch(torch.arange(40), CLEAN, Augment())
    assert torch.equal(batch.labels, torch.from_numpy(masks).long())
    assert torch.equal(batch.inputs.permute(0, 2, 3, 1), torch.from_numpy(PIXELS))


def test_datasets_that_a_program_has_loaded_are_taken_too():
    data = load_data(datasets.DatasetDict({"train": photos(), "test": photos(6)}))
    assert data.classes == ("ant", "bee")
    assert torch.equal(data.train.pixels, torch.from_numpy(PIXELS))


def test_refusals(tmp_path):
    spec = saved(tmp_path / "set", train=photos(), test=photos(4))
    for query, says in (
        ("?label=kind", r"has no label column 'kind'; expected one of image, label: change \?label=…"),
        ("?image=label", r"has no image column 'label'; expected one of image: change \?image=…"),
        ("?trust_remote_code=1", r"has an unknown option 'trust_remote_code'"),
        ("?order=number", r"is for labels that are text"),
    ):
        with pytest.raises(UserError, match=says):
            load_data(spec + query)
    with pytest.raises(UserError, match="has no split 'train' among test"):
        load_data(saved(tmp_path / "test", test=photos(4)))
    bad = made(
        {"image": [{"bytes": b"no image", "path": None}] * 4, "label": [0, 1] * 2},
        image=datasets.Image(),
        label=datasets.Value("int64"),
    )
    with pytest.raises(UserError, match=r"image in row 0 of the train split of hub set '.*' cannot be decoded"):
        load_data(saved(tmp_path / "bad", train=bad))
    with pytest.raises(UserError, match=r"hub set 'nobody/nothing' cannot be loaded \(.*\); check its name"):
        load_data("hub:nobody/nothing")


def test_a_revision_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or photos())
    load_data("hub:someone/photos@v2?config=small")
    load_data("hub:someone/photos")
    assert asked == [(("someone/photos", "small"), {"revision": "v2"}), (("someone/photos", None), {"revision": None})]
