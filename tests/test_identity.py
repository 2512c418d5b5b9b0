"""What lies on disk is what was put there, or told, or made anew; what decides a result is never another unnoticed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_cache import make, teacher_signals, values
from test_data_sets import random_images, write_parquet
from test_held_out import folders, scenes
from test_origin import Net, begin, pixels, teacher
from tools import same, weights
from torch.utils.data import Dataset, Subset, TensorDataset

import protege
from protege import UserError
from protege.data import CLEAN, contents, load_data
from protege.data.contents import content_of
from protege.run.study import run_study
from protege.signals.checksums import checksums, of_view

QUICK = {"epochs": 1, "precision": "fp32", "workers": 0}


def flip(path: Path, at: int | None = None, bit: int = 0) -> None:
    """Change one bit of a file, of its first byte that is not zero unless told."""
    content = bytearray(path.read_bytes())
    content[next(i for i, byte in enumerate(content) if byte) if at is None else at] ^= 1 << bit
    path.write_bytes(content)


# ---- cached signals ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.sampled_from([1, 2, 3, 5, 8, 12]), st.sampled_from(["float16", "int64", "int16", "bool"]))
def test_every_bit_of_a_row_counts_and_so_does_its_place(rows, width, kind):
    generator = np.random.default_rng(rows * width)
    stored = generator.integers(0, 2, (rows, width * np.dtype(kind).itemsize * 8), np.uint8)

    def of(bits, index=None):
        one, other = (torch.from_numpy(np.packbits(each, 1).view(kind)) for each in (bits, stored))
        return checksums(np.arange(rows) if index is None else index, {"a": one, "b": other})

    known = of(stored)
    assert (known != 0).all()
    assert (of(stored, np.arange(rows) + 1) != known).all()
    for bit in range(stored.shape[1]) if kind != "bool" else ():
        changed = stored.copy()
        changed[:, bit] ^= 1
        assert (of(changed) != known).all()


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 70_000), min_size=1, max_size=40), st.integers(0, 60_000))
def test_a_view_is_summed_as_its_rows_are(some, block):
    rows = np.union1d(sorted(some), np.arange(block, block + 9000))
    field = torch.randn(80_000, 3, generator=torch.Generator().manual_seed(0)).half()
    found = list(of_view(rows, {"logits": field}))
    assert np.array_equal(np.concatenate([at for at, _ in found]), rows)
    assert np.array_equal(np.concatenate([sums for _, sums in found]), checksums(rows, {"logits": field[rows]}))


@pytest.mark.parametrize("name", ["logits.float16", "classes.int64", "known.int32"])
@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_changed_bit_of_a_cache_is_computed_anew(name, bit, tmp_path, caplog):
    cache = make(tmp_path)
    cache.write(0, torch.arange(10), values(10, 1))
    cache.commit(0)
    cache.write(0, torch.arange(20, 30), values(10, 2))
    cache.commit(0)
    flip(tmp_path / "view-0000" / name, bit=bit)
    again = make(tmp_path)
    with caplog.at_level("WARNING"):
        missing = again.missing(0, torch.arange(10))
    assert len(missing) == 1
    assert again.known(0, torch.arange(20, 30))
    assert "1 rows in" in caplog.text
    again.write(0, missing, {name: value[missing] for name, value in values(10, 1).items()})
    again.commit(0)
    assert make(tmp_path).known(0, torch.arange(10))
    assert torch.equal(again.read(0, torch.arange(10))["logits"], values(10, 1)["logits"].half().float())


def test_views_without_the_file_that_tells_whose_they_are_are_cleared(tmp_path):
    cache = make(tmp_path)
    cache.write(0, torch.arange(10), values(10, 1))
    cache.commit(0)
    (tmp_path / "cache.json").unlink()
    other = make(tmp_path, {"network": "another"})
    assert not other.known(0, torch.arange(1))
    with pytest.raises(UserError, match="another teacher"):
        make(tmp_path)
    assert torch.equal(cache.read(0, torch.arange(10))["logits"], values(10, 1)["logits"].half().float())


@pytest.mark.parametrize("rows", [[10**9, 1], [-5, 1], [0.5, 1.0], 3, [[1, 2], [3, 4]], [1, 5], ["a", "b"]])
def test_a_damaged_plan_is_no_plan(rows, tmp_path):
    cache = make(tmp_path)
    cache.known(0, torch.arange(1))
    np.save(tmp_path / "view-0000" / "plan-0of1.npy", np.array(rows))
    assert cache.plan(0, "0of1") == []


@pytest.mark.parametrize("budget", [0, 48 * 10 + 10])
def test_what_is_not_stored_is_rounded_like_what_is(budget, tmp_path):
    """So that a run does not depend on the disk; where each epoch has a view of its own nothing is rounded."""
    stored, other, fresh = (
        teacher_signals(tmp_path / "a"),
        teacher_signals(tmp_path / "b", budget=budget),
        teacher_signals(views=0),
    )
    stored.fill(1)
    index, found = torch.arange(48), []
    for each in (stored, other, fresh):
        batch = next(iter(protege.data.batches(each.views.samples, [index], 1, each.views.augment)))
        each.attach(batch)
        found.append(batch.signals["teacher"]["logits"])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2].half().float())
    assert not torch.equal(found[0], found[2])


# ---- other files of ours -------------------------------------------------------------------------------------------


def test_a_changed_bit_of_a_model_is_told(tmp_path):
    protege.load_model(Net(), data=load_data(TensorDataset(*pixels()))).save(tmp_path / "model")
    folder = tmp_path / "model"
    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    sound, last = path.read_bytes(), path.stat().st_size - 1
    for at in (last // 2, last):
        flip(path, at, 1)
        with pytest.raises(UserError, match=r"not the file that was saved with its config\.json.*remove 'digest'"):
            protege.load_model(str(folder), network=Net())
        path.write_bytes(sound)
    changed = {name: value + 1 for name, value in load_file(path).items()}
    save_file(changed, path)
    config.pop("digest"), config.pop("check", None)  # as the sentence says, and in folders of version 0.1
    (folder / "config.json").write_text(json.dumps(config))
    assert same(weights(protege.load_model(str(folder), network=Net()).network), changed)


@pytest.mark.parametrize("lost", ["result.json", "student", "student/config.json", "student/model.safetensors"])
@pytest.mark.parametrize("how", ["gone", "empty", "[]"])
def test_what_a_finished_run_lost_is_made_again(lost, how, tmp_path):
    settings = {"method": "none", "epochs": 1, "samples": 20, "out": tmp_path}
    protege.distill(student="zoo:mlp?hidden=4", data="digits", **settings)
    names = ("result.json", "student/config.json", "student/model.safetensors")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    shutil.rmtree(tmp_path / lost) if (tmp_path / lost).is_dir() else (tmp_path / lost).unlink()
    if how != "gone" and lost.endswith("json"):
        (tmp_path / lost).write_text("" if how == "empty" else how)
    protege.distill(out=tmp_path, resume=True)
    for name in names[1:]:
        assert (tmp_path / name).read_bytes() == before[name]
    metrics = [
        json.loads(text)["student"]["metrics"] for text in (before[names[0]], (tmp_path / names[0]).read_bytes())
    ]
    assert metrics[0] == metrics[1]


def test_a_damaged_extraction_is_told_as_ours(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(20, 4, 4), np.arange(20) % 2)
    write_parquet(tmp_path / "test.parquet", random_images(20, 4, 4), np.arange(20) % 2)
    options = {"memory_limit": 10, "scratch": tmp_path / "scratch"}
    data = load_data(f"parquet:{tmp_path}", **options)
    path = data.train.reader.source.kept.path
    sound = path.read_bytes()
    right, told = data.train.fetch(torch.arange(20), CLEAN, data.augment).inputs.clone(), []
    places = range(0, len(sound), 47)
    for at in places:  # what a changed bit does not spoil is read as ever
        flip(path, at)
        try:
            again = load_data(f"parquet:{tmp_path}", **options).train.fetch(torch.arange(20), CLEAN, data.augment)
            assert torch.equal(again.inputs, right)
        except UserError as error:
            told.append(str(error))
        path.write_bytes(sound)
    assert len(told) > 0.7 * len(places)
    assert all(f"{path.name} are damaged; remove this file" in each for each in told)
    load_data(f"parquet:{tmp_path}", **options).train.fetch(torch.arange(20), CLEAN, data.augment)


def test_damaged_decoded_images_are_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr("protege.data.encoded.MANY", 10)
    write_parquet(tmp_path / "train.parquet", random_images(20, 4, 4), np.arange(20) % 2)
    options = {"scratch": tmp_path / "scratch"}
    before = load_data(f"parquet:{tmp_path}", **options).train.fingerprint()
    (kept,) = (tmp_path / "scratch").glob("*.pixels.npy")
    flip(kept, kept.stat().st_size - 50)
    assert load_data(f"parquet:{tmp_path}", **options).train.fingerprint() == before


def test_damaged_figures_are_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))

    def figures(name):
        return protege.distill(teacher(), Net(), TensorDataset(*pixels()), out=tmp_path / name, **QUICK).result[
            "teacher"
        ]

    expected = figures("first")
    remembered = list((tmp_path / "cache" / "evaluations").iterdir())
    assert remembered
    for number, change in enumerate([lambda text: "{}", lambda text: "[]", lambda text: text.replace("0.", "0.1")]):
        for path in remembered:
            path.write_text(change(path.read_text()))
        assert figures(str(number)) == expected


# ---- what decides a result -----------------------------------------------------------------------------------------


class Large(Dataset):
    """Images that count as more than fits into memory."""

    def __init__(self, images, labels):
        self.images, self.targets = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, at):
        return self.images[at], int(self.targets[at])


def test_one_pixel_of_a_large_dataset_is_noticed():
    images, labels = torch.randint(0, 256, (2000, 1, 6, 6), dtype=torch.uint8), torch.arange(2000) % 3
    before = load_data((Large(images, labels), Large(images, labels)), memory_limit=1000)
    assert not before.train.in_memory
    for at in (1, 777, 1998):
        other = images.clone()
        other[at, 0, 3, 3] ^= 1
        after = load_data((Large(other, labels), Large(images, labels)), memory_limit=1000)
        assert after.train.fingerprint() != before.train.fingerprint()
        assert after.test.fingerprint() == before.test.fingerprint()


def test_files_beyond_the_limit_are_known_by_pieces_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "READ", 5000)
    monkeypatch.setattr(contents, "PIECE", 50)
    paths = [tmp_path / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
        os.utime(path, (1, 1))
    before = content_of(paths)
    assert content_of(paths) == before
    assert content_of([paths[1], paths[0], *paths[2:]]) != before
    for change in ("time", "size", "content"):
        path = paths[7]
        path.write_bytes(bytes([7]) * (1000 + (change == "size")))
        os.utime(path, (1, 2 if change == "time" else 1))
        if change == "content":
            path.write_bytes(bytes([8]) * 1000)
            os.utime(path, (1, 1))
        assert content_of(paths) != before


def test_files_that_a_dataset_lists_count_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("protege.data.datasets.READ", 10)
    monkeypatch.setattr("protege.data.datasets.COMPARED", 2)
    images, labels = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8), torch.arange(30) % 3
    data = Large(images, labels)
    data.samples = [(str(tmp_path / str(at)), 0) for at in range(30)]
    for path, _ in data.samples:
        Path(path).write_text("x")
        os.utime(path, (1, 1))

    def digest():
        part = Subset(data, range(30))
        return load_data((part, part), memory_limit=100).train.fingerprint()

    before = digest()
    assert digest() == before
    os.utime(data.samples[13][0], (1, 2))
    assert digest() != before


@pytest.mark.parametrize("limit", [4 << 30, 100])
def test_a_mask_counts_and_times_do_not(limit, tmp_path):
    spec = scenes(tmp_path / "set", random_images(12, 8, 8), torch.zeros(12))
    shutil.copytree(tmp_path / "set" / "train", tmp_path / "set" / "test")
    shutil.copytree(tmp_path / "set" / "trainannot", tmp_path / "set" / "testannot")

    def digest():
        return load_data(spec, memory_limit=limit).train.fingerprint()

    before, mask = digest(), tmp_path / "set" / "trainannot" / "003.png"
    os.utime(mask, (1, 1))
    assert digest() == before
    shutil.copy(tmp_path / "set" / "trainannot" / "004.png", mask)
    assert digest() != before


@pytest.mark.parametrize("limit", ["4GiB", "1KiB"])
def test_a_pixel_of_the_same_size_and_time_makes_another_cache(limit, tmp_path):
    """Signals that were remembered for other pixels are never taken."""
    images = random_images(60, 8, 8) // 2
    images[30:] += 128  # so that it can be learned
    labels = torch.arange(60) // 30
    spec = folders(tmp_path / "images", images, labels)
    options = {**QUICK, "memory_limit": limit, "views": 1, "augment": "none"}
    protege.train("zoo:mlp?hidden=16", spec, tmp_path / "t", **{**QUICK, "epochs": 60, "lr": 0.1})
    setup = (tmp_path / "t" / "student", "zoo:mlp?hidden=4", spec)

    def forwarded(name):
        result = protege.distill(*setup, out=tmp_path / name, **options).result
        return result["teacher_samples_forwarded"], len(load_data(spec).train)

    first, count = forwarded("first")
    assert first == count
    assert forwarded("second")[0] == 0
    for path in sorted((tmp_path / "images").rglob("*.png"))[:2]:
        size, stat = path.stat().st_size, path.stat()
        folders(tmp_path / "other", 255 - images, labels)
        content = (tmp_path / "other" / path.relative_to(tmp_path / "images")).read_bytes()
        path.write_bytes(content.ljust(size, b"\0")[: max(size, len(content))])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again, count = forwarded("third")
    assert again == count


# ---- runs that are done --------------------------------------------------------------------------------------------


def test_a_finished_run_of_another_teacher_is_refused_by_its_folder_alone(tmp_path):
    """Also where its teacher cannot be opened for what was done to it."""
    data = TensorDataset(*pixels())
    protege.train("zoo:mlp?hidden=16", "digits", tmp_path / "t", **{**QUICK, "epochs": 8, "samples": 600})
    folder = tmp_path / "t" / "student"
    protege.distill(str(folder), "zoo:mlp?hidden=4", "digits", out=tmp_path / "run", samples=60, **QUICK)
    text = (folder / "config.json").read_text()
    for factor in (1.001, 1.1):
        config = json.loads(text)
        config["input"]["mean"] = [factor * value for value in config["input"]["mean"]]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError):
            protege.distill(out=tmp_path / "run", resume=True)
    (folder / "config.json").write_text(text)
    protege.distill(out=tmp_path / "run", resume=True)
    shutil.move(tmp_path / "t", tmp_path / "elsewhere")  # gone, and so nothing to compare with
    assert protege.distill(out=tmp_path / "run", resume=True).metrics
    begin("finished", tmp_path / "python", teacher(), Net(), data)


def test_a_study_refuses_finished_runs_of_other_data(tmp_path):
    images, labels = random_images(60, 8, 8), torch.arange(60) // 30
    spec = folders(tmp_path / "images", images, labels)
    study = tmp_path / "study.toml"
    study.write_text(
        f'name = "s"\nseeds = [0, 1]\n[recipe]\nmethod = "none"\nstudent = "zoo:mlp?hidden=4"\ndata = "{spec}"\n'
        'epochs = 1\nworkers = 0\nprecision = "fp32"\n[grid]\nlr = [0.1, 0.01]\n'
    )
    out = tmp_path / "out"
    done = run_study(study, out)
    assert [run["status"] for run in done["runs"]] == ["done"] * 4
    before = {path: path.read_bytes() for path in out.rglob("result.json")}
    run_study(study, out, resume=True)
    folders(tmp_path / "images", images[::-1].copy(), labels)
    study.write_text(study.read_text().replace("[0, 1]", "[0, 1, 2]"))
    with pytest.raises(UserError, match=r"another data set than .*start anew with overwrite=True"):
        run_study(study, out, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("result.json")} == before
