"""Only the images that are used are decoded, and what is decoded is remembered."""

import shutil
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_scenes
from test_data_sets import png, random_images, write_parquet
from tools import Curtain, same, weights

import protege
from protege.data import CLEAN, Augment, InMemory, batches, choose, decode, encoded, hold_out, load_data, parquet
from protege.data.samples import Images
from protege.errors import UserError
from protege.run import origin, prepare, run
from protege.signals import TeacherCache
from protege.training import processes
from protege.training.journal import Journal

COUNT, SAMPLES = 300, 12
IMAGES = random_images(COUNT + 20, 8, 8)
LABELS = np.arange(COUNT + 20) % 2


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the images that are decoded, in this order."""
    names, real = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda data, name, *rest: names.append(name) or real(data, name, *rest))
    return names


def as_parquet(folder: Path, damaged: int | None = None) -> str:
    images = [png(image) for image in IMAGES]
    if damaged is not None:  # in the middle, where no header tells
        images[damaged] = images[damaged][:60] + bytes(40) + images[damaged][100:]
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / "train.parquet", images[:COUNT], LABELS[:COUNT])
    write_parquet(folder / "test.parquet", images[COUNT:], LABELS[COUNT:])
    return f"parquet:{folder}"


def as_folders(folder: Path, damaged: int | None = None) -> str:
    images = [png(image) for image in IMAGES]
    if damaged is not None:
        images[damaged] = images[damaged][:60] + bytes(40) + images[damaged][100:]
    for at, image in enumerate(images):
        path = folder / ("train" if at < COUNT else "test") / "ab"[LABELS[at]] / f"{at:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return f"images:{folder}"


KINDS = {"parquet": as_parquet, "images": as_folders}


def chosen(data, seed: int = 0) -> list[int]:
    return choose(data.train.labels, samples=SAMPLES, seed=seed).tolist()


def names_of(kind: str, folder: Path, positions) -> set[str]:
    """What the training images at these positions are called."""
    if kind == "parquet":
        return {f"image in row {at} of {folder}/train.parquet" for at in positions}
    paths = np.array(sorted((folder / "train").rglob("*.png")))
    return {f"image {path}" for path in paths[positions]}


def learn(spec: str, out: Path, **settings):
    """A student that has its own normalisation, so that nothing is measured on other samples."""
    settings = {"epochs": 1, "samples": SAMPLES, "precision": "fp32", "method": "none", **settings}
    torch.manual_seed(0)
    student = protege.Model(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)),
        protege.InputSpec(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    return protege.distill(student=student, data=spec, out=out, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_decodes_its_samples_once_and_no_others(kind, tmp_path, decoded):
    spec = KINDS[kind](tmp_path / "set")
    data = load_data(spec)
    assert not decoded, "names, labels and fingerprints are read from what is encoded"
    data.train.fingerprint()
    assert not decoded
    learn(spec, tmp_path / "run")
    train = [name for name in decoded if f"{tmp_path}/set/train" in name]
    first = range(origin.PROBED)  # by which networks are known again
    assert set(train) == names_of(kind, tmp_path / "set", [*first, *chosen(data)])
    assert len(decoded) == len(set(decoded)) == len(train) + 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_counts_where_it_is_used(kind, tmp_path):
    data = load_data(KINDS[kind](tmp_path / "sound"))
    used = chosen(data)
    unused = next(at for at in range(100, COUNT) if at not in used)

    def index(position: int) -> int:  # class folders come one after the other
        return position if kind == "parquet" else torch.argsort(torch.tensor(LABELS[:COUNT]), stable=True)[position]

    spec = KINDS[kind](tmp_path / "unused", damaged=int(index(unused)))
    sound = learn(str(data.name), tmp_path / "a")
    assert same(weights(learn(spec, tmp_path / "b").student.network), weights(sound.student.network))
    for number, at in ((1, int(index(used[-1]))), (2, COUNT + 3)):  # one to learn from, one to be tested on
        spec = KINDS[kind](tmp_path / f"used{number}", damaged=at)
        with pytest.raises(UserError, match=r"image .* cannot be decoded \(.*\); replace or remove it"):
            learn(spec, tmp_path / "c")
        assert not (tmp_path / "c").exists(), "nothing is written"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_of_a_stream_that_is_judged_on_is_told_before_anything_is_written(kind, tmp_path):
    settings = {"memory_limit": "1KiB", "validation": 0.5, "workers": 0}
    data = load_data(KINDS[kind](tmp_path / "sound"))
    _, held = hold_out(torch.tensor(chosen(data)), data.train.labels, 0.5, seed=0)
    order = torch.arange(COUNT)
    if kind == "images":  # class folders come one after the other
        order = torch.argsort(torch.tensor(LABELS[:COUNT]), stable=True)
    for at in (COUNT + 15, int(order[held[-1]])):
        spec = KINDS[kind](tmp_path / f"{at}", damaged=at)
        with pytest.raises(UserError, match=r"image .* cannot be decoded \(.*\); replace or remove it"):
            learn(spec, tmp_path / "run", **settings)
        assert not (tmp_path / "run").exists(), "nothing is written"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_by_which_networks_are_known_is_told(kind, tmp_path):
    data = load_data(KINDS[kind](tmp_path, damaged=4))
    with pytest.raises(UserError, match=r"image .* cannot be decoded"):
        origin.origin_of(data, None, protege.load_model("zoo:mlp?channels=3&image_size=8&num_classes=2"), False)


def changed_afterwards(kind: str, folder: Path, act, **options) -> None:
    """Open a set, change a file of it, and see that `act` (on the training samples) refuses what is there now."""
    spec = KINDS[kind](folder)
    samples = load_data(spec, **options).train
    if options.get("memory_limit"):  # of which only some were looked at
        samples.fingerprint()
    path = folder / "train.parquet" if kind == "parquet" else next((folder / "train").rglob("*.png"))
    before = path.read_bytes()
    if kind == "parquet":
        write_parquet(path, IMAGES[:COUNT][::-1], LABELS[:COUNT])
    else:
        path.write_bytes(png(IMAGES[5]))
    with pytest.raises(UserError, match=f"{path} has changed since the data was opened.*load the data again"):
        act(samples)
    path.write_bytes(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("act", "many"), [("load", 10), ("load", 10**6), ("fingerprint", 10**6)])
def test_pixels_are_never_kept_under_the_name_of_other_content(kind, act, many, tmp_path, monkeypatch):
    """A file that changes after it was hashed, and is then what it was, leaves nothing wrong behind."""
    monkeypatch.setattr(encoded, "MANY", many)
    scratch = tmp_path / "scratch"
    changed_afterwards(kind, tmp_path / "set", lambda samples: getattr(samples, act)(), scratch=scratch)
    again = load_data(KINDS[kind](tmp_path / "set"), scratch=scratch).train
    order = np.argsort(LABELS[:COUNT], kind="stable") if kind == "images" else np.arange(COUNT)
    assert np.array_equal(again.pixels, IMAGES[:COUNT][order])


def test_a_stream_of_files_that_change_is_refused(tmp_path):
    def read(samples):
        samples.fetch(torch.arange(COUNT), CLEAN, Augment())

    changed_afterwards("images", tmp_path / "set", read, memory_limit=1)
    changed_afterwards(
        "images", tmp_path / "part", lambda samples: read(samples.part(torch.arange(COUNT))), memory_limit=1
    )
    write_scenes(tmp_path / "scenes", train=4, test=2)
    samples = load_data(f"segmentation:{tmp_path}/scenes", memory_limit=1).train
    samples.fingerprint()
    mask = next((tmp_path / "scenes/trainannot").iterdir())
    mask.write_bytes(mask.read_bytes() + b"0")
    with pytest.raises(UserError, match=f"mask {mask} has changed since the data was opened"):
        samples.fetch(torch.arange(4), CLEAN, Augment())


def test_a_set_that_was_moved_is_known_as_before_and_decodes_nothing_for_it(tmp_path, decoded):
    data = load_data(as_folders(tmp_path))
    part = data.train.part(torch.tensor([9, 250, 1]))
    for samples in (data.train, part, part.relabelled(torch.tensor([1, 0]))):
        moved = samples.copied("cpu")
        index = torch.tensor([2, 0])
        assert moved.part(index).fingerprint() == samples.part(index).fingerprint()
        assert moved.copied("cpu").fingerprint() == moved.fingerprint() == samples.fingerprint()
    assert not decoded
    assert torch.equal(part.copied("cpu").pixels, part.pixels)
    plain = InMemory(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)).part(torch.tensor([4, 2]))
    assert plain.copied("cpu").fingerprint() == plain.fingerprint()


def test_a_cache_of_a_set_that_was_moved_is_that_of_a_run(tmp_path, monkeypatch):
    """As on an accelerator, to which both move what they learn from."""
    monkeypatch.setattr(InMemory, "to", InMemory.copied)
    spec = as_folders(tmp_path / "set")
    settings = {"epochs": 1, "views": 1, "augment": "none", "precision": "fp32"}
    protege.train(student="zoo:mlp", data=spec, out=tmp_path / "teacher", **settings)
    teacher = str(tmp_path / "teacher/student")
    protege.distill(teacher=teacher, student="zoo:mlp", data=spec, method="kd", out=tmp_path / "run", **settings)
    assert TeacherCache(teacher, spec, views=1, augment="none", precision="fp32").fill() == 0


def test_a_set_that_was_moved_lets_go_of_what_it_came_from(tmp_path):
    for load_first in (True, False):
        samples = load_data(as_folders(tmp_path / str(load_first))).train
        if load_first:
            samples.load()
        origin_of_them = weakref.ref(samples.images)
        moved = samples.copied("cpu")
        moved.load()
        del samples
        assert origin_of_them() is None
        assert np.array_equal(moved.pixels[:150], IMAGES[:COUNT:2])


def test_threads_may_share_a_set():
    """One decodes the last image while another is about to."""

    def decode(rows):
        if waiting:
            waiting.pop()()
        yield rows, torch.ones(len(rows), 2, 2, 1, dtype=torch.uint8)

    images = Images(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), decode)
    waiting = [lambda: images.load(torch.arange(4))]
    images.load(torch.arange(4))
    assert images.pixels.all()


def test_of_many_shards_a_chunk_is_as_large_as_of_one(tmp_path, monkeypatch):
    image = png(IMAGES[0])
    for shard in range(40):
        write_parquet(tmp_path / f"train-{shard:02}.parquet", [png(i) for i in random_images(20, 8, 8)], [0, 1] * 10)
    monkeypatch.setattr(parquet, "_CHUNK_BYTES", 6 * len(image))
    shards = sorted(tmp_path.iterdir())
    alone, together = (max(map(len, parquet.Rows(paths, "image").chunks())) for paths in (shards[:1], shards))
    assert together == alone < 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [b"\x89PNG", None])
def test_no_image_and_one_cut_short_are_found_at_once(kind, tmp_path, end):
    image = png(IMAGES[0])
    spec = KINDS[kind](tmp_path)
    broken = end or image[: len(image) // 2]
    if kind == "parquet":
        write_parquet(tmp_path / "train.parquet", [image] * 290 + [broken], [0, 1] * 145 + [0])
    else:
        (tmp_path / "train" / "b" / "zz.png").write_bytes(broken)
    with pytest.raises(UserError, match=r"image .* cannot be decoded"):
        load_data(spec)


def test_every_header_counts(tmp_path):
    """One image of another kind or size, among those that are not looked at before, changes what all are brought to."""
    grey = [png(image[..., 0]) for image in IMAGES[:COUNT]]
    for number, (odd, shape) in enumerate(
        (
            (png(IMAGES[0]), (3, 8, 8)),
            (png(random_images(1, 9, 8)[0]), (3, 224, 224)),
            (png(IMAGES[0, ..., 0]), (1, 8, 8)),
        )
    ):
        write_parquet(tmp_path / f"{number}.parquet", [*grey, odd], [0, 1] * (COUNT // 2) + [0])
        assert load_data(f"parquet:{tmp_path}/{number}.parquet").train.shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_decoded_is_the_same_in_any_order_and_part(kind, tmp_path):
    spec = KINDS[kind](tmp_path)
    whole = load_data(spec).train.pixels
    train = load_data(spec).train
    index = torch.tensor([250, 3, 3, 77])
    assert torch.equal(train.fetch(index, CLEAN, Augment()).inputs.permute(0, 2, 3, 1), whole[index])
    part, turned = train.part(torch.tensor([9, 250, 1])), train.relabelled(torch.tensor([1, 0]))
    again = part.part(torch.tensor([2, 0]))
    assert torch.equal(again.pixels, whole[[1, 9]])
    assert torch.equal(part.pixels, whole[[9, 250, 1]])
    backwards = torch.arange(COUNT).flip(0)
    assert torch.equal(train.part(backwards).pixels, whole.flip(0))
    assert torch.equal(train.part(backwards).labels, train.labels.flip(0))
    assert train.part(backwards).fingerprint() != train.fingerprint()
    assert turned.labels.tolist() == (1 - train.labels).tolist()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).split(32)
    for batch in batches(turned, order, CLEAN, Augment()):
        assert torch.equal(batch.inputs.permute(0, 2, 3, 1), whole[batch.index])
    assert torch.equal(train.pixels, whole)
    prints = {samples.fingerprint() for samples in (train, part, again, turned, load_data(spec).test)}
    assert len(prints) == 5
    assert load_data(spec).train.part(torch.tensor([9, 250, 1])).fingerprint() == part.fingerprint()


def test_images_that_are_mixed_in_are_decoded_too(tmp_path):
    spec = as_folders(tmp_path)
    eager, late = load_data(spec).train, load_data(spec).train
    eager.load()
    mixed = Augment(mixup=0.5, cutmix=0.5)
    for pool in (None, torch.arange(40)):
        augment = mixed if pool is None else mixed.among(pool)
        pairs = (batches(samples, [torch.arange(8)], 0, augment) for samples in (eager, late))
        assert torch.equal(*(next(pair).inputs for pair in pairs))


def test_runs_complete_one_file(tmp_path, monkeypatch, decoded):
    """What one run has decoded others find, whatever else they need; both may write at once."""
    monkeypatch.setattr(encoded, "MANY", 10)
    spec, scratch = as_parquet(tmp_path / "set"), tmp_path / "scratch"
    one, other = (load_data(spec, scratch=scratch).train for _ in range(2))
    one.load(torch.arange(0, 40))
    other.load(torch.arange(30, 60))
    assert len(decoded) == 60, "30 to 39 are there, though they were not when the other was opened"
    third = load_data(spec, scratch=scratch).train
    third.load(torch.arange(50, 70))
    assert len(decoded) == 70, "only 60 to 69 were new"
    assert (third.pixels.numpy() == IMAGES[:COUNT]).all()
    assert len(decoded) == COUNT
    for samples in (one, other, load_data(spec, scratch=scratch).train):
        assert (samples.pixels.numpy() == IMAGES[:COUNT]).all()
    assert len(decoded) == COUNT
    (kept,) = (array for array in map(np.load, scratch.glob("*.pixels.npy")) if len(array) == COUNT)
    assert np.array_equal(kept, IMAGES[:COUNT])


def test_scenes_are_decoded_when_they_are_used(tmp_path, decoded):
    write_scenes(tmp_path, train=30, test=4)
    data = load_data(f"segmentation:{tmp_path}")
    data.train.fingerprint()
    assert not decoded
    batch = data.train.fetch(torch.tensor([7, 3]), CLEAN, Augment())
    assert len(decoded) == 2
    for image, name in zip(batch.inputs, ("s07", "s03"), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(tmp_path / "train" / f"{name}.png")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_knew_its_data_by_pixels_goes_on(kind, tmp_path, monkeypatch):
    spec = KINDS[kind](tmp_path / "set")
    settings = {"epochs": 2, "batch_size": 4, "checkpoint_seconds": 0}
    whole = learn(spec, tmp_path / "whole", **settings)
    original = Journal.save_when_due

    def killed(*args, **kwargs):
        original(*args, **kwargs)
        raise Curtain

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save_when_due", killed)
        patch.setattr(origin, "VERSION", 3)
        patch.setattr(protege.data.InMemory, "fingerprint", protege.data.InMemory.fingerprint_of_pixels)
        with pytest.raises(Curtain):
            learn(spec, tmp_path / "run", **settings)
    other = KINDS[kind](tmp_path / "other")
    (tmp_path / "moved").mkdir()
    if kind == "parquet":
        write_parquet(tmp_path / "other" / "train.parquet", IMAGES[:COUNT][::-1], LABELS[:COUNT])
    else:
        shutil.copy(tmp_path / "other/train/a/000.png", tmp_path / "other/train/a/002.png")
    with pytest.raises(UserError, match="another data set"):
        learn(other, tmp_path / "run", resume=True, **settings)
    again = learn(spec, tmp_path / "run", resume=True, **settings)
    assert same(weights(again.student.network), weights(whole.student.network))


def test_of_several_processes_the_first_decodes(tmp_path, monkeypatch, decoded):
    alone, real = [], processes.in_turn

    @contextmanager
    def first(accelerator):
        before = len(decoded)
        with real(accelerator):
            yield
        alone.extend(decoded[before:])

    for module in (prepare, run):
        monkeypatch.setattr(module, "in_turn", first)
    learn(as_parquet(tmp_path / "set"), tmp_path / "run")
    assert len(alone) >= len(decoded) - origin.PROBED > 20
