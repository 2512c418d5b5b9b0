"""Bad input: one sentence that names the value and the remedy, and nothing written."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from protege.data import Augment, batches, check_complete, load_data
from protege.errors import UserError


def png(value: int = 0, size: int = 4) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(out, "png")
    return out.getvalue()


def noise() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)).save(out, "png")
    return out.getvalue()


NOISE = noise()


def folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(png(i))
    return root


def parquet(root: Path, labels=(0, 1, 0, 1), images=None, metadata=None, name="train", **columns) -> Path:
    images = [png(i) for i in range(len(labels))] if images is None else images
    table = pa.table({"image": images, "label": list(labels), **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, root / f"{name}.parquet")
    return root


def refused(spec, **options) -> str:
    """The sentence with which data is refused to a network that is to learn its classes from it."""
    with pytest.raises(UserError) as caught:
        check_complete(load_data(spec, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert message.endswith((".", "?"))
    return message


@pytest.fixture(autouse=True)
def _nothing_written(tmp_path, monkeypatch, request):
    """The cache folder must not come into being."""
    cache = tmp_path.parent / f"{tmp_path.name}-cache"
    monkeypatch.setenv("PROTEGE_CACHE", str(cache))
    yield
    assert not cache.exists()


@pytest.mark.parametrize("spec", ["images:{}/no", "parquet:{}/no", "parquet:{}/no?label=x"])
def test_missing_path(tmp_path, spec):
    assert "no does not exist" in refused(spec.format(tmp_path))


def test_a_file_where_a_folder_is_expected(tmp_path):
    (tmp_path / "x").write_text("x")
    assert "not a folder" in refused(f"images:{tmp_path}/x")
    assert "not Parquet" in refused(f"parquet:{tmp_path}/x")
    assert "train*.parquet" in refused(f"parquet:{tmp_path}")


def test_empty_class_folder(tmp_path):
    folder(tmp_path, {"cat": 2, "dog": 2, "eel": 0})
    (tmp_path / "eel" / ".hidden.png").write_bytes(png())
    assert f"{tmp_path}/eel holds no images" in refused(f"images:{tmp_path}")


def test_one_class(tmp_path):
    assert "only one class, 'cat'" in refused(f"images:{folder(tmp_path / 'f', {'cat': 3})}")
    assert "only one class" in refused(f"parquet:{parquet(tmp_path, (0, 0, 0))}")


def test_no_images(tmp_path):
    assert "no class folders" in refused(f"images:{tmp_path}")
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, tmp_path / "train.parquet")
    assert "no rows" in refused(f"parquet:{tmp_path}")


def test_label_out_of_range(tmp_path):
    names = {"names": '["a", "b"]'}
    message = refused(f"parquet:{parquet(tmp_path, (0, 1, 5, 1), metadata=names)}")
    assert "label 5 in row 2 of" in message
    assert "0 to 1" in message


def test_label_of_the_test_split_out_of_range(tmp_path):
    parquet(tmp_path)
    assert "class 2 of" in refused(f"parquet:{parquet(tmp_path, (0, 1, 0, 2), name='test')}")
    parquet(tmp_path, metadata={"names": '["a", "b"]'})
    assert "label 2 in row 3 of" in refused(f"parquet:{tmp_path}")


def test_negative_label(tmp_path):
    assert "label -1 in row 2" in refused(f"parquet:{parquet(tmp_path, (0, 1, -1, 1))}")


def test_null_label(tmp_path):
    assert "null in row 3" in refused(f"parquet:{parquet(tmp_path, (0, 1, 0, None))}")


def test_labels_that_are_neither_integers_nor_text(tmp_path):
    assert "holds double values" in refused(f"parquet:{parquet(tmp_path, (0.5, 1, 0, 1))}")


def test_class_names_that_the_training_files_do_not_have(tmp_path):
    parquet(tmp_path, ("a", "b", "a", "b"))
    parquet(tmp_path, ("b", "c"), name="test")
    assert "class 2 ('c') of" in refused(f"parquet:{tmp_path}")
    parquet(tmp_path, ("b", None), name="test")
    assert "null in row 1" in refused(f"parquet:{tmp_path}")
    parquet(tmp_path, (0, 1), name="test")
    assert "label 0 in row 0 of" in refused(f"parquet:{tmp_path}")
    assert "only one class" in refused(f"parquet:{parquet(tmp_path, ('a', 'a'))}/train.parquet")


def test_unknown_label_column(tmp_path):
    message = refused(f"parquet:{parquet(tmp_path)}?label=kind")
    assert "'kind'" in message
    assert "image, label" in message


def test_unknown_option(tmp_path):
    assert "'lable'" in refused(f"parquet:{parquet(tmp_path)}?lable=label")


def test_no_label_column_can_be_told(tmp_path):
    table = pa.table({"image": [png()] * 2, "x": [0, 1], "y": [0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert "?label=COLUMN" in refused(f"parquet:{tmp_path}")


def test_no_image_column(tmp_path):
    pq.write_table(pa.table({"x": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    assert "no column of encoded images among x, label" in refused(f"parquet:{tmp_path}")


def test_shards_that_differ(tmp_path):
    parquet(tmp_path, name="train-0")
    pq.write_table(pa.table({"image": [png()]}), tmp_path / "train-1.parquet")
    assert "train-1.parquet" in refused(f"parquet:{tmp_path}")


@pytest.mark.parametrize("damage", [b"not an image", NOISE[: len(NOISE) // 2]], ids=["foreign", "cut"])
def test_corrupt_image(tmp_path, damage):
    folder(tmp_path / "f", {"cat": 3, "dog": 3})
    (tmp_path / "f" / "dog" / "1.png").write_bytes(damage)
    assert f"{tmp_path}/f/dog/1.png cannot be decoded" in refused(f"images:{tmp_path}/f")
    parquet(tmp_path, images=[png(), png(), damage, png()])
    assert f"row 2 of {tmp_path}/train.parquet cannot be decoded" in refused(f"parquet:{tmp_path}")


def test_missing_image_in_parquet(tmp_path):
    assert "row 1 of" in refused(f"parquet:{parquet(tmp_path, images=[png(), None, png(), png()])}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_later_is_named_when_it_is_fetched(tmp_path, workers):
    data = load_data(f"images:{folder(tmp_path, {'cat': 4, 'dog': 4})}", memory_limit=0)
    for path in tmp_path.glob("cat/*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cat/\d.png has changed since the data was opened") as caught:
        list(batches(data.train, [torch.arange(len(data.train))], 0, Augment(), workers=workers))
    assert "\n" not in str(caught.value)


def test_a_class_without_training_sample(tmp_path):
    assert "class 1 of" in refused(f"parquet:{parquet(tmp_path, (0, 2, 0, 2))}")


def test_class_folders_that_differ(tmp_path):
    folder(tmp_path / "train", {"cat": 2, "dog": 2})
    folder(tmp_path / "test", {"cat": 2, "cow": 2})
    assert "class 1 ('cow') of" in refused(f"images:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digit", "did you mean 'digits'"),
        ("parket:/x", "did you mean 'parquet:PATH'"),
        ("image:/x", "did you mean 'images:PATH'"),
        ("zzz:/x", "give digits"),
        ("images:", "names nothing"),
        ("/", "write 'images:/'"),
    ],
)
def test_unknown_spec(spec, says):
    assert says in refused(spec)


def test_image_sizes_that_cannot_be():
    assert "not positive" in refused("images:/", image_size=0)
    assert "8×8" in refused("digits", image_size=32)


class Listed(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        item = self.items[i]
        return item() if callable(item) else item


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def image(*shape) -> torch.Tensor:
    return torch.zeros(shape or (3, 4, 4), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Listed((image().float() - 1.5, 0), (image(), 1)), "remove Normalize"),
        (Listed((image().float() + float("nan"), 0), (image(), 1)), "pixels that are not finite"),
        (Listed((image(), 0), (image(3, 5, 4), 1)), "item 1 of train dataset has shape (5, 4, 3)"),
        (Listed(lambda: (torch.rand(3, 4, 4), 0), (image(), 1)), "remove random transforms"),
        (Listed((image(5, 4, 4), 0)), "shape (5, 4, 4)"),
        (Listed((image().long(), 0)), "int64 pixels"),
        (Listed(("cat.png", 0)), "type str"),
        (Listed({"path": "cat.png"}), "pair (image, label)"),
        (Listed((image(), {1}), (image(), 0)), "label 'set'"),
        (Listed((image(), 0.5), (image(), 1)), "label 0.5"),
        (Listed((image(), -1), (image(), 1)), "label -1 of train sample 0"),
        (Listed((image(), 0), (image(), 0)), "only one class"),
        (Listed((image(), 0), (image(), 2)), "no training sample"),
        (Listed((image(), 0), (image(), 1)), "too few samples (2)"),
        (Listed(), "is empty"),
        (42, "map-style"),
        (Endless(), "map-style"),
        ((1, 2, 3), "tuple of 3"),
    ],
)
def test_own_dataset(dataset, says):
    assert says in refused(dataset)


def test_train_and_test_datasets_of_other_shapes():
    train = Listed((image(), 0), (image(), 1))
    assert "test dataset has images of shape (3, 5, 5)" in refused((train, Listed((image(3, 5, 5), 0))))


def test_scratch_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    parquet(tmp_path)
    assert "scratch folder" in refused(f"parquet:{tmp_path}", memory_limit=0, scratch=tmp_path / "file" / "x")


def test_an_extraction_that_fails_leaves_nothing(tmp_path):
    images = [png()] * 299 + [None]
    parquet(tmp_path, [i % 2 for i in range(300)], images)
    large = [png(0, 70), png(1, 71), *images]  # mixed sizes: headers of a sample settle the form
    parquet(tmp_path, [i % 2 for i in range(302)], large)
    assert "row 301" in refused(f"parquet:{tmp_path}", memory_limit=0, scratch=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_torchvision_and_hub_missing(monkeypatch, tmp_path):
    for module in ("torchvision", "torchvision.datasets", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install torchvision" in refused(f"torchvision:CIFAR10:{tmp_path}")
    assert "pip install datasets" in refused("hub:someone/something")
    assert "torchvision:NAME:PATH" in refused("torchvision:CIFAR10")


class Toy(Listed):
    """Shaped like torchvision's sets."""

    classes = ("no", "yes")

    def __init__(self, root, train):
        super().__init__(*[(Image.new("RGB", (4, 4), (i, 0, 0)), i % 2) for i in range(6 if train else 4)])


class Parted(Toy):
    """As SVHN, STL10, Food101 are opened."""

    def __init__(self, root, split):
        super().__init__(root, {"train": True, "test": False}[split])


@pytest.mark.parametrize("kind", [Toy, Parted])
def test_torchvision_sets(kind, monkeypatch, tmp_path):
    module = types.ModuleType("torchvision.datasets")
    module.Toy = kind
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    data = load_data(f"torchvision:Toy:{tmp_path}")
    assert (len(data.train), len(data.test), data.classes) == (6, 4, ("no", "yes"))
    assert "no dataset 'Toys'" in refused(f"torchvision:Toys:{tmp_path}")
    assert "does not exist" in refused(f"torchvision:Toy:{tmp_path}/no")
