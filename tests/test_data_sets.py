"""Sets by spec: what is read, how it is split, and that a stream shows the same pixels as memory."""

import io
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from protege.data import CLEAN, Augment, Data, InMemory, Streamed, batches, encoded, kept, load_data
from protege.data import samples as sampled
from protege.data.framing import centred
from protege.data.samples import default_memory_limit, has_room
from protege.errors import UserError
from protege.run import prepare
from protege.run.recipe import make_recipe

REAL = Path(os.environ.get("PROTEGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar100"


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "png")
    return out.getvalue()


def random_images(count: int, height: int = 10, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def write_parquet(path: Path, images, labels, *, label="label", metadata=None, struct=True, groups=7) -> None:
    encoded = [image if isinstance(image, bytes | None) else png(image) for image in images]
    column = pa.array([{"bytes": b, "path": None} for b in encoded] if struct else encoded)
    table = pa.table({"image": column, label: labels}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=groups)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Data, Data, np.ndarray]:
    """One Parquet set of two shards, in memory and, because it exceeds the limit, as a stream; its pixels."""
    folder = tmp_path_factory.mktemp("parquet")
    images = random_images(40)
    for shard in range(2):
        part = slice(20 * shard, 20 * shard + 20)
        labels = (np.arange(40) % 4)[part]
        write_parquet(folder / f"train-{shard}.parquet", images[part], labels, struct=shard == 0)
    write_parquet(folder / "test.parquet", images[:8], np.arange(8) % 4)
    limit = images.nbytes // 2
    stream = load_data(f"parquet:{folder}", memory_limit=limit, scratch=folder / "scratch")
    return load_data(f"parquet:{folder}"), stream, images


def test_a_set_above_the_limit_is_a_stream_with_the_same_pixels(both):
    memory, stream, images = both
    assert isinstance(memory.train, InMemory)
    assert isinstance(stream.train, Streamed)
    assert not stream.train.in_memory
    index = torch.randperm(40)
    batch = stream.train.fetch(index, CLEAN, stream.augment)
    assert torch.equal(batch.inputs.permute(0, 2, 3, 1), torch.from_numpy(images)[index])
    assert torch.equal(batch.labels, index % 4)
    assert stream.augment == memory.augment == Augment(shift=1, flip=True)
    assert stream.classes == ("0", "1", "2", "3")
    assert stream.statistics() == memory.statistics()
    assert torch.equal(stream.train.labels, memory.train.labels)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 39), min_size=1, max_size=9),
    st.integers(CLEAN, 6),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 50),
)
def test_shifts_and_flips_of_a_stream_equal_those_in_memory(both, index, view, shift, flip, seed):
    memory, stream, _ = both
    augment = Augment(shift=shift, flip=flip, seed=seed)
    ours = stream.train.fetch(torch.tensor(index), view, augment)
    theirs = memory.train.fetch(torch.tensor(index), view, augment)
    assert torch.equal(ours.inputs, theirs.inputs)
    assert ours.inputs.stride() == theirs.inputs.stride()


@pytest.mark.parametrize("augment", ["shift=2,flip", "crop=0.3,flip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_the_workers(both, augment, workers):
    _, stream, _ = both
    augment = Augment.parse(augment)
    order = torch.randperm(40).split(6)
    state = torch.get_rng_state()
    found = list(batches(stream.train, order, 3, augment, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == len(order)
    for batch, positions in zip(found, order, strict=True):
        assert torch.equal(batch.index, positions)
        assert batch.view == 3
        alone = torch.cat([stream.train.fetch(i[None], 3, augment).inputs for i in positions])
        assert torch.equal(batch.inputs, alone)
    rest = list(batches(stream.train, order[4:], 3, augment, workers=workers))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(found[4:], rest, strict=True))


def test_batches_of_memory_come_in_order(both):
    memory, stream, _ = both
    order = torch.randperm(40).split(7)
    for a, b in zip(
        batches(memory.train, order, 1, memory.augment),
        batches(stream.train, order, 1, memory.augment),
        strict=True,
    ):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.index, b.index)


def test_streams_travel_to_workers_that_are_spawned(both):
    _, stream, _ = both
    stream.train.fetch(torch.arange(2), 0, stream.augment)  # opens the file
    copy, index = pickle.loads(pickle.dumps(stream.train)), torch.tensor([3, 33])
    ours, theirs = (s.fetch(index, 1, stream.augment) for s in (copy, stream.train))
    assert torch.equal(ours.inputs, theirs.inputs)


def test_extraction_is_kept_and_used_again(both, tmp_path):
    _, stream, images = both
    folder = stream.train.reader.source.kept.path.parent
    before = {p: p.stat().st_ino for p in folder.iterdir()}
    again = load_data(stream.name, memory_limit=images.nbytes // 2, scratch=folder)
    assert {p: p.stat().st_ino for p in folder.iterdir()} == before
    assert again.train.fingerprint() == stream.train.fingerprint()
    assert again.train.fingerprint() != again.test.fingerprint()


def test_a_damaged_extraction_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(20, 4, 4), np.arange(20) % 2)
    options = {"memory_limit": 10, "scratch": tmp_path / "scratch"}
    load_data(f"parquet:{tmp_path}", **options)
    (extracted,) = (tmp_path / "scratch").iterdir()
    for content in (extracted.read_bytes()[:-100], b""):
        extracted.write_bytes(content)
        with pytest.raises(UserError, match=f"{extracted.name} are damaged; remove"):
            load_data(f"parquet:{tmp_path}", **options)


def test_what_a_killed_run_left_is_cleared(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(20, 4, 4), np.arange(20) % 2)
    options = {"memory_limit": 10, "scratch": tmp_path / "scratch"}
    load_data(f"parquet:{tmp_path}", **options)
    (extracted,) = (tmp_path / "scratch").iterdir()
    old, fresh = (extracted.parent / f".{extracted.name}.{os.getpid()}-{x * 8}-{x * 8}.tmp" for x in "12")  # machines
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (0, 0))
    extracted.unlink()
    load_data(f"parquet:{tmp_path}", **options)
    assert sorted(extracted.parent.iterdir()) == sorted([extracted, fresh])


def test_extractions_not_used_for_long_make_room(tmp_path):
    options = {"memory_limit": 10, "scratch": tmp_path / "scratch"}
    for seed, name in enumerate(("first", "second", "third")):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "train.parquet", random_images(20, 4, 4, seed=seed), np.arange(20) % 2)
    for name in ("first", "second"):
        load_data(f"parquet:{tmp_path / name}", **options)
    made = sorted((tmp_path / "scratch").iterdir())
    for each in made:
        os.utime(each, (0, 0))
    load_data(f"parquet:{tmp_path / 'first'}", **options)  # used again
    load_data(f"parquet:{tmp_path / 'third'}", **options)
    left = set((tmp_path / "scratch").iterdir())
    assert len(left) == 2
    assert len(left & set(made)) == 1


def test_fingerprint_tells_content_apart():
    pixels, labels = torch.from_numpy(random_images(4)), torch.arange(4)
    first = InMemory(pixels, labels).fingerprint()
    assert first == InMemory(pixels.clone(), labels).fingerprint()
    assert first != InMemory(pixels, labels.flip(0)).fingerprint()
    other = pixels.clone()
    other[0, 0, 0, 0] ^= 1
    assert first != InMemory(other, labels).fingerprint()
    assert first != InMemory(pixels.transpose(1, 2), labels).fingerprint()


def test_crops_of_a_stream_come_from_the_full_size_original(tmp_path):
    fine = np.zeros((200, 200, 3), np.uint8)
    fine[:, ::2] = 255  # stripes of a pixel, which a resized copy would lose
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(fine).save(tmp_path / name / "1.png")
        Image.fromarray(fine).save(tmp_path / name / "2.png")
    data = load_data(f"images:{tmp_path}", image_size=100, memory_limit=0)
    assert isinstance(data.train, Streamed)
    assert data.augment == Augment(crop=0.35, flip=True)
    clean = data.train.fetch(torch.tensor([0]), CLEAN, data.augment).inputs.float()
    assert clean[..., 10:-10].std() < 5
    crops = [data.train.fetch(torch.tensor([0]), v, Augment(crop=0.01)).inputs.float() for v in range(20)]
    assert max(c.std() for c in crops) > 50


def make_folders(root: Path, splits=("",), classes=("cat", "dog"), each=5, size=(9, 8)) -> None:
    for split in splits:
        for c, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, image in enumerate(random_images(each, *size, seed=c)):
                Image.fromarray(image).save(folder / f"{i}.png")


def test_image_folders(tmp_path, caplog):
    make_folders(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with caplog.at_level("INFO", "protege"):
        data = load_data(f"images:{tmp_path}")
    assert "held out" in caplog.text
    assert data.classes == ("cat", "dog")
    assert data.train.shape == (3, 9, 8)
    assert min(data.train.labels.bincount().tolist() + data.test.labels.bincount().tolist()) >= 1
    assert len(data.train) + len(data.test) == 10
    first = torch.arange(data.train.labels.bincount()[0])
    cats, shown = random_images(5, 9, 8, seed=0), data.train.fetch(first, CLEAN, data.augment).inputs
    assert all(any((image == cat).all() for cat in cats) for image in shown.permute(0, 2, 3, 1).numpy())


def test_image_folders_with_splits(tmp_path):
    make_folders(tmp_path, ("train", "valid", "test"))
    memory, stream = load_data(f"images:{tmp_path}"), load_data(f"images:{tmp_path}", memory_limit=0)
    assert [len(s) for s in (memory.train, memory.val, memory.test)] == [10, 10, 10]
    index = torch.arange(10)
    assert torch.equal(
        memory.val.fetch(index, 2, memory.augment).inputs, stream.val.fetch(index, 2, memory.augment).inputs
    )
    assert stream.train.fingerprint() == stream.val.fingerprint()  # they hold the same, wherever they lie


def test_validation_stands_in_for_test(tmp_path):
    make_folders(tmp_path, ("train", "val"))
    data = load_data(f"images:{tmp_path}")
    assert data.val is None
    assert len(data.test) == 10


def test_images_of_several_sizes_are_resized(tmp_path):
    make_folders(tmp_path)
    Image.fromarray(random_images(1, 20, 30)[0]).save(tmp_path / "dog" / "odd.jpg")
    Image.fromarray(random_images(1, 20, 30)[0][..., 0]).save(tmp_path / "dog" / "grey.png")
    assert load_data(f"images:{tmp_path}").train.shape == (3, 224, 224)
    assert load_data(f"images:{tmp_path}", image_size=16).train.shape == (3, 16, 16)


def test_a_late_odd_image_is_found(tmp_path):
    images = list(random_images(600, 4, 4))
    images[590] = random_images(1, 5, 4)[0]  # beyond the images that are surveyed first
    write_parquet(tmp_path / "train.parquet", images, np.arange(600) % 2, groups=600)
    assert load_data(f"parquet:{tmp_path}", image_size=None, memory_limit=10**9).train.shape == (3, 224, 224)
    stream = load_data(f"parquet:{tmp_path}", memory_limit=10**4, scratch=tmp_path / "scratch")
    assert stream.train.shape == (3, 224, 224)


@pytest.mark.parametrize("limit", [10**6, 10])
def test_grey_images_stay_grey_until_one_has_colour(tmp_path, limit):
    grey = [image[..., 0] for image in random_images(300, 6, 6)]
    options = {"memory_limit": limit, "scratch": tmp_path / "scratch"}
    write_parquet(tmp_path / "train.parquet", grey, np.arange(300) % 2)
    data = load_data(f"parquet:{tmp_path}", **options)
    assert data.train.shape == (1, 6, 6)
    write_parquet(tmp_path / "train.parquet", [*grey, random_images(1, 6, 6)[0]], np.arange(301) % 2)
    assert load_data(f"parquet:{tmp_path}", **options).train.shape == (3, 6, 6)


def test_sixteen_bit_images_are_scaled(tmp_path):
    for name, value in (("a", 0x4020), ("b", 0xFF00)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((5, 5), value, np.uint16)).save(tmp_path / name / f"{i}.png")
    data = load_data(f"images:{tmp_path}")
    assert set(data.train.pixels.unique().tolist()) == {0x40, 0xFF}


def test_many_small_images_are_decoded_in_order(tmp_path):
    images = random_images(2100, 3, 3)
    write_parquet(tmp_path / "train.parquet", images, np.arange(2100) % 2, groups=2100)
    write_parquet(tmp_path / "test.parquet", images[:4], np.arange(4) % 2)
    data = load_data(f"parquet:{tmp_path}")
    assert torch.equal(data.train.pixels, torch.from_numpy(images))


@pytest.mark.parametrize(
    ("column", "metadata"),
    [
        ("fine_label", {"fine_names": json.dumps(["ant", "bee"])}),
        ("label", {"names": json.dumps(["ant", "bee"])}),
        (
            "label",
            {
                "huggingface": json.dumps(
                    {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
                )
            },
        ),
    ],
)
def test_class_names_come_from_the_metadata(tmp_path, column, metadata):
    images = random_images(10, 4, 4)
    write_parquet(tmp_path / "one.parquet", images, np.arange(10) % 2, label=column, metadata=metadata)
    assert load_data(f"parquet:{tmp_path / 'one.parquet'}").classes == ("ant", "bee")


def test_label_column_by_name_or_for_being_the_only_one(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(10, 4, 4), np.arange(10) % 2, label="kind")
    assert load_data(f"parquet:{tmp_path}").classes == ("0", "1")
    assert load_data(f"parquet:{tmp_path}?label=kind").classes == ("0", "1")


def test_digits():
    data = load_data("digits")
    pixels, labels = load_digits(return_X_y=True)
    known = {(*row.astype(int).tolist(), int(label)) for row, label in zip(pixels, labels, strict=True)}
    parts = [(part.pixels.flatten(1).double() * 16 / 255, part.labels) for part in (data.train, data.test)]
    rows = [torch.cat([values.round().long(), labels[:, None]], 1) for values, labels in parts]
    assert {tuple(row) for row in torch.cat(rows).tolist()} == known
    assert (len(data.train), len(data.test), data.val) == (1437, 360, None)
    assert data.train.shape == (1, 8, 8)
    assert data.augment == Augment(shift=1)
    assert len(data.classes) == 10
    assert data.train.pixels.max() == 255
    assert data.test.labels.bincount().min() >= 34
    again = load_data("digits")
    assert torch.equal(again.train.pixels, data.train.pixels)
    (mean,), (std,) = data.statistics()
    assert abs(mean - data.train.pixels.double().mean().item() / 255) < 1e-6
    assert abs(std - data.train.pixels.double().std().item() / 255) < 1e-4


def test_batch_parts_and_moves():
    batch = load_data("digits").train.fetch(torch.arange(10), 0, Augment(shift=1))
    batch.signals["teacher"] = {"logits": torch.arange(20).view(10, 2)}
    parts = batch.to("cpu").chunks(3)
    assert [len(p) for p in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)
    assert torch.equal(torch.cat([p.index for p in parts]), batch.index)
    assert torch.equal(parts[2].signals["teacher"]["logits"], torch.tensor([[16, 17], [18, 19]]))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"CIFAR-100 as Parquet is not in {REAL} (set PROTEGE_DATA)")
def test_cifar100(tmp_path):
    single = REAL / "test-00000-of-00001.parquet"
    memory = load_data(f"parquet:{single}")
    assert len(memory.train) + len(memory.test) == 10_000
    assert len(memory.test) == pytest.approx(
        2000, abs=120
    )  # by content, each with a chance of 0.2: three spreads of 40
    assert memory.test.labels.unique().numel() == 100
    assert memory.classes[:2] == ("apple", "aquarium_fish")
    assert memory.augment == Augment(shift=4, flip=True)
    mean, std = memory.statistics()
    assert mean == pytest.approx((0.507, 0.487, 0.441), abs=0.015)
    assert std == pytest.approx((0.267, 0.256, 0.276), abs=0.015)
    stream = load_data(f"parquet:{single}", memory_limit=10**6, scratch=tmp_path)
    assert isinstance(stream.train, Streamed)
    index = torch.arange(0, 7900, 200)
    ours, theirs = (d.train.fetch(index, 5, d.augment) for d in (stream, memory))
    assert torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(ours.labels, theirs.labels)
    coarse = load_data(f"parquet:{single}?label=coarse_label", memory_limit=10**6, scratch=tmp_path)
    assert len(coarse.classes) == 20
    assert len(list(tmp_path.iterdir())) == 1


@settings(deadline=None, max_examples=300)
@given(*[st.integers(1, 300)] * 4)
def test_any_image_is_brought_to_any_size(width, height, target_width, target_height):
    found = centred(Image.new("L", (width, height), 7), target_width, target_height)
    assert found.size == (target_width, target_height)
    assert found.getextrema() == (7, 7)


@pytest.mark.parametrize("size", [(61, 60), (60, 61), (29, 30), (29, 29)])
def test_images_whose_sides_round_badly_are_resized(size):
    assert centred(Image.new("RGB", size), 224, 224).size == (224, 224)
    assert centred(Image.new("L", (33, 31)), 61, 60).size == (61, 60)


def test_small_images_of_several_sizes_are_brought_to_the_default_square(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i, size in enumerate([(61, 60), (29, 30), (60, 64)]):
            Image.new("RGB", size).save(tmp_path / name / f"{i}.png")
    assert load_data(f"images:{tmp_path}").train.shape == (3, 224, 224)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_class_names_as_labels_are_numbered_in_sorted_order(tmp_path, kind):
    images = random_images(6, 4, 4)
    names = ["dog", "cat", "eel", "cat", "dog", "eel"]
    for split, order in (("train-0", names), ("train-1", names[::-1]), ("test", ["eel", "dog"])):
        write_parquet(tmp_path / f"{split}.parquet", images[: len(order)], pa.array(order).cast(kind))
    data = load_data(f"parquet:{tmp_path}")
    assert data.classes == ("cat", "dog", "eel")
    assert data.train.labels.tolist() == [1, 0, 2, 0, 1, 2, 2, 1, 0, 2, 0, 1]
    assert data.test.labels.tolist() == [2, 1]


def test_many_small_images_are_decoded_once(tmp_path, monkeypatch):
    """A second run maps what the first has decoded; other files, sizes and damage are decoded anew."""
    images, labels = random_images(12, 10, 10), [0, 1] * 6
    write_parquet(tmp_path / "train.parquet", images, labels)
    scratch, spec, times = tmp_path / "scratch", f"parquet:{tmp_path / 'train.parquet'}", []
    real = encoded.decode_all
    monkeypatch.setattr(encoded, "decode_all", lambda *a: times.append(1) or real(*a))

    def pixels(**options):
        data = load_data(spec, scratch=scratch, **options)
        return {int(label): data.train.pixels[data.train.labels == label] for label in (0, 1)}

    plain = pixels()
    assert (len(times), list(tmp_path.glob("scratch/*"))) == (1, []), "few images are not kept"
    monkeypatch.setattr(encoded, "MANY", 10)
    for count in (2, 2):
        found = pixels()
        assert len(times) == count
        assert all(torch.equal(found[label], plain[label]) for label in plain)
    assert pixels(image_size=5)[0].shape[1:3] == (5, 5)
    assert len(times) == 3
    (one, other) = sorted(scratch.glob("*.npy"))
    for each in (one, other):
        each.write_bytes(each.read_bytes()[:200])
    assert torch.equal(pixels()[1], plain[1])
    assert len(times) == 4
    write_parquet(tmp_path / "train.parquet", images[::-1].copy(), labels)
    assert not torch.equal(pixels()[0], plain[0])
    assert len(times) == 5
    os.utime(one, (1, 1))
    os.utime(other, (1, 1))
    pixels(image_size=7)
    assert not one.exists(), "it was not read for long"
    assert not other.exists()
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    before = set(scratch.iterdir())
    pixels(image_size=6)
    assert set(scratch.iterdir()) == before, "a full disk is left alone"


def test_sets_stay_where_they_are_when_an_accelerator_has_no_room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert has_room("cuda", 500)
    assert not has_room("cuda", 501)
    assert has_room("cpu", 10**15)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 2000))
    samples = InMemory(torch.zeros(2, 4, 4, 1, dtype=torch.uint8), torch.zeros(2))
    assert samples.to("cuda") is samples


@pytest.mark.parametrize(
    ("free", "memory", "processes", "limit"),
    [(140, 512, 1, 70), (140, 100, 1, 50), (140, 512, 8, 32), (6, 64, 1, 4)],  # GiB
)
def test_a_gpu_keeps_what_it_and_the_machine_have_room_for(monkeypatch, free, memory, processes, limit):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free << 30, 2 * free << 30))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=memory << 30))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_memory_limit("cuda") == limit << 30
    assert default_memory_limit("cpu") == 4 << 30
    settings = make_recipe({"student": "zoo:mlp", "data": "digits", "method": "none"})
    kept = [prepare._with_memory_limit(settings, torch.device(kind)).memory_limit for kind in ("cpu", "cuda")]
    assert kept == [None, f"{limit << 10}MiB"]
    asked = settings.model_copy(update={"memory_limit": "1GiB"})
    assert prepare._with_memory_limit(asked, torch.device("cuda")) is asked


def test_images_are_copied_some_at_a_time_as_they_are_decoded(both, monkeypatch):
    monkeypatch.setattr(sampled, "_PART", 3)
    _, stream, images = both
    whole = load_data(stream.name).train
    whole.load(torch.tensor([1, 30, 31]))
    copy = whole.part(torch.tensor([30, 2, 31, 3, 4, 5])).copied("cpu")
    assert copy.images.missing.tolist() == [False, True, False, True, True, True]
    assert torch.equal(copy.pixels, torch.from_numpy(images[[30, 2, 31, 3, 4, 5]]))
    assert copy.images.missing is None
    copy.pixels[0] = 0
    assert torch.equal(whole.pixels, torch.from_numpy(images))
