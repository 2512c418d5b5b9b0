"""Which output is which class: names settle it, else labelled samples do, else a sentence asks."""

import enum
import io
import json
import logging
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import protege
from protege import InputSpec, Model, UserError
from protege.data import check_complete, imagenet, load_data
from protege.data.classes import by_number, ordered, other_order, places, union
from protege.models import storage
from protege.models.classes import in_order_of, tail

COUNT = 12
NUMBERS = tuple(map(str, range(COUNT)))
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


class Columns(nn.Module):
    """Always right: class k is the k-th column, the brightest; `turn` gives its outputs another order."""

    def __init__(self, turn: int = 0):
        super().__init__()
        self.scale, self.turn = nn.Parameter(torch.tensor(20.0)), turn

    def forward(self, x):
        return self.scale * x.mean((1, 2)).roll(self.turn, 1)


def columns(turn: int = 0, **options) -> Model:
    return Model(Columns(turn), InputSpec(channels=1), **options)


def picture(column: int, shade: int = 0) -> np.ndarray:
    pixels = np.zeros((2, COUNT), np.uint8)
    pixels[:, column] = 200 + shade
    return pixels


def png(column: int, shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(column, shade)).save(out, "png")
    return out.getvalue()


def folders(root: Path, names, each: int = 3, splits=("train", "test")) -> Path:
    """A folder named names[k] with pictures of column k; none where the name is None."""
    for split in splits:
        for column, name in enumerate(names):
            for i in range(each if name is not None else 0):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                (root / split / name / f"{i}.png").write_bytes(png(column, i))
    return root


class Columned(Dataset):
    """Pictures of columns with labels, and whatever attributes a Dataset may have."""

    def __init__(self, labels, shown=None, **attributes):
        self.own, self.shown = list(labels), list(labels if shown is None else shown)
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.own)

    def __getitem__(self, at):
        return torch.from_numpy(picture(self.shown[at]))[None], self.own[at]


def image_folder(shown, names=NUMBERS) -> Columned:
    """As torchvision's ImageFolder numbers the classes that it finds."""
    classes = sorted({names[column] for column in shown})
    labels = [classes.index(names[column]) for column in shown]
    return Columned(labels, shown, classes=classes, class_to_idx={name: k for k, name in enumerate(classes)})


def accuracy(model, data, **options) -> float:
    return protege.evaluate(model, data, **options)["accuracy"]


def some(*but: int) -> list[int]:
    return [column for column in range(COUNT) if column not in but] * 4


def only(*kept: int, names=NUMBERS) -> list[str | None]:
    return [name if column in kept else None for column, name in enumerate(names)]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "protege")


# --- names


def test_numbers_in_names_are_read_as_numbers():
    assert ordered(NUMBERS, "number") == NUMBERS
    assert ordered(["img_10", "img_2", "Zebra", "img2", "007", "7", "a"], "number") == (
        *("007", "7", "Zebra"),
        *("a", "img2", "img_2", "img_10"),
    )
    plain = ["cat", "cat-x", "catfish", "Cat", "cat_2", "dög", ""]
    assert ordered(plain, "number") == ordered(plain, "text")
    assert by_number("n01440764") < by_number("n01443537")
    assert other_order(NUMBERS) == ("number", "text")
    assert other_order(sorted(NUMBERS)) == ("text", "number")
    assert other_order(NUMBERS[::-1]) is None
    assert other_order(WORDS) is None


def test_names_are_found_whatever_their_case_and_spaces_unless_that_makes_two_the_same():
    assert places(["Sea Lion", "class-10 ", "CAT"], ["cat", "class10", "sea_lion"]) == [2, 1, 0]
    assert places(["cafe\u0301"], ["café"]) == [0]  # as another system writes it
    assert places(["Cat", "cat"], ["cat", "Cat", "dog"]) == [1, 0]
    assert places(["-1", "dog"], ["1", "dog"]) == [None, 1]
    assert places(["crane", "x"], ["crane", "crane", "x"]) == [None, 2]
    assert union([("b", "a"), ("A", "c"), ("c", "d")]) == ("b", "a", "c", "d")


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (np.array(["a", "b"]), ("a", "b")),
        (np.array([b"a", b"b"]), ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        ({1: "b", 0: "a"}, ("a", "b")),
        ({"1": "b", "0": "a"}, ("a", "b")),
        ({"b": np.int64(1), "a": torch.tensor(0)}, ("a", "b")),
        (lambda: ["a", "b"], ("a", "b")),
        ((name for name in "ab"), ("a", "b")),
        (enum.Enum("Label", {"b": 1, "a": 0}), ("a", "b")),
        ([("a", "synonym"), ("b",)], ("a, synonym", "b")),
        (["1", "0"], ("1", "0")),
        (torch.arange(2), None),
        (2, None),
        (np.int64(2), None),
        (None, None),
        ([], None),
    ],
)
def test_class_names_of_any_kind(classes, names):
    data = load_data(Columned([0, 1] * 10, classes=classes))
    assert (data.classes, data.named) == (names or ("0", "1"), names is not None)


def test_class_names_elsewhere():
    assert load_data(Columned([0, 1] * 10, class_to_idx={"b": 1, "a": 0})).classes == ("a", "b")
    feature = type("ClassLabel", (), {"names": ["a", "b"]})
    assert load_data(Columned([0, 1] * 10, features={"label": feature})).classes == ("a", "b")
    named = Columned([0, 1] * 10, classes=["a", "b"])
    assert load_data(Subset(named, range(12))).classes == ("a", "b")
    assert load_data(ConcatDataset([named, named])).classes == ("a", "b")
    assert Model(Columns(), InputSpec(), classes={"b": 1, "a": 0}).classes == ("a", "b")


@pytest.mark.parametrize(
    "classes",
    ["ab", 2.0, {"a", "b"}, True, -3, 10**9, {"a": 500, "b": 300}, [["a"], ["b"]], [None, "b"], object(), ["a"]],
)
def test_class_names_that_are_none(classes):
    with pytest.raises(UserError) as caught:
        load_data(Columned([0, 1] * 10, classes=classes))
    assert ". " not in str(caught.value)


# --- labels that are ids


@pytest.mark.parametrize("label", [1_700_000_000, 2**63 - 1, 2**70, np.uint64(2**64 - 1)])
def test_labels_that_are_ids(label):
    with pytest.raises(UserError, match="seems to be an id"):
        load_data(Columned([0, label] * 10, [0, 1] * 10))


@pytest.mark.parametrize(("kind", "label"), [(pa.int64(), 1_700_000_000), (pa.uint64(), 2**64 - 1)])
def test_ids_in_parquet(tmp_path, kind, label):
    pq.write_table(pa.table({"image": [png(0)] * 4, "label": pa.array([0, 1, 0, label], kind)}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=f"label {label} in row 3 .* seems to be an id"):
        load_data(f"parquet:{tmp_path / 'x.parquet'}")


@pytest.mark.parametrize("count", [1_700_000_000, 2**70, True, 0, -1, 1.5, "12"])
def test_a_number_of_classes_that_is_none(tmp_path, count):
    with pytest.raises(UserError, match="whole number of classes"):
        protege.load_model("zoo:mlp", num_classes=count)
    folder = protege.load_model("zoo:mlp", num_classes=3).save(tmp_path / "model")
    config = json.loads((folder / storage.CONFIG).read_text())
    config["arguments"]["num_classes"] = count
    (folder / storage.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_classes"):
        protege.load_model(folder)


# --- the order


@pytest.mark.parametrize(
    "names", [NUMBERS, [f"class{k + 1}" for k in range(COUNT)], [f"img_{k}" for k in range(COUNT)]]
)
def test_without_names_both_orders_are_tried(tmp_path, caplog, names):
    as_numbers, as_text = folders(tmp_path / "a", names), folders(tmp_path / "b", sorted(names))
    assert load_data(f"images:{as_numbers}").classes == tuple(names)
    assert accuracy(columns(), f"images:{as_numbers}") == 1
    assert "the order of their number is taken" in caplog.text
    assert accuracy(columns(), f"images:{as_text}") == 1
    assert "the order of their text is taken" in caplog.text
    assert accuracy(columns(), f"images:{as_text}?order=number") < 0.2


def test_names_settle_the_order(tmp_path, caplog):
    for n, names in enumerate((NUMBERS, WORDS, tuple(sorted(NUMBERS)))):
        assert accuracy(columns(classes=names), f"images:{folders(tmp_path / str(n), names)}") == 1
    assert "is taken" not in caplog.text
    other = folders(tmp_path / "other", [name.upper().replace("E", " e ") for name in WORDS])
    assert accuracy(columns(classes=WORDS), f"images:{other}") == 1


def test_a_teacher_without_a_clear_order_is_asked_for_it(tmp_path):
    root = folders(tmp_path, NUMBERS)
    with pytest.raises(UserError, match=rf"write images:{root}\?order=number .* or images:{root}\?order=text"):
        accuracy(columns(turn=5), f"images:{root}")
    assert accuracy(columns(turn=5), f"images:{root}?order=number") == 0
    with pytest.raises(UserError, match="order=size; expected number"):
        load_data(f"images:{root}?order=size")


def test_too_few_samples_settle_nothing(tmp_path):
    """Seven of the ten classes whose place differs, one image each: that may be luck (1 in 128)."""
    root = folders(tmp_path, NUMBERS, each=1)

    class Half(Columns):
        def forward(self, x):
            right = super().forward(x)
            return torch.where(right.argmax(1, keepdim=True) < 9, right, 0)

    with pytest.raises(UserError, match="right on 7 and 0 of 10"):
        accuracy(Model(Half(), InputSpec(channels=1)), f"images:{root}")


def test_the_probability_of_chance_counts_every_outcome():
    for trials, chance in ((5, 0.5), (4, 0.2)):
        for least in range(trials + 2):
            share = sum(
                chance ** sum(one) * (1 - chance) ** (trials - sum(one))
                for one in product((0, 1), repeat=trials)
                if sum(one) >= least
            )
            assert tail(least, trials, chance) == pytest.approx(share)


def test_text_labels_in_parquet(tmp_path):
    def written(name: str, names, **split) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        for part, shown in split.items():
            table = pa.table({"image": [png(c) for c in shown], "label": [names[c] for c in shown]})
            pq.write_table(table, tmp_path / name / f"{part}.parquet")
        return f"parquet:{tmp_path / name}"

    spec = written("a", sorted(NUMBERS), train=some(), test=some(3))
    assert accuracy(columns(), spec) == 1
    assert accuracy(columns(classes=sorted(NUMBERS)), spec) == 1
    with pytest.raises(UserError, match=r"label=label&order=number"):
        accuracy(columns(turn=5), f"{spec}?label=label")
    assert accuracy(columns(), f"{spec}?label=label&order=text") == 1


def test_named_numbers_in_parquet_that_differ_between_files(tmp_path):
    def write(file: str, shown, names) -> None:
        feature = {"names": list(names), "_type": "ClassLabel"}
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
        labels = [names.index(WORDS[column]) for column in shown]
        table = pa.table({"image": [png(c) for c in shown], "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / file)

    write("train-0.parquet", some(), WORDS[::-1])
    write("train-1.parquet", some(), WORDS[3:] + WORDS[:3])
    write("test.parquet", some(0, 5), [word for word in WORDS if word not in ("zero", "five")])
    for split in ("train", "test"):
        assert accuracy(columns(classes=WORDS), f"parquet:{tmp_path}", split=split) == 1
    with pytest.raises(UserError, match="order=text is for labels that are text"):
        load_data(f"parquet:{tmp_path}?order=text")


def test_datasets_are_brought_into_the_models_order():
    assert accuracy(columns(classes=NUMBERS), image_folder(some())) == 1
    assert accuracy(columns(), image_folder(some())) == 1  # tried, as ImageFolder sorts by text
    assert accuracy(columns(turn=5), image_folder(some())) == 0  # its own numbers stand
    assert accuracy(columns(classes=WORDS), image_folder(some(2, 7), WORDS)) == 1
    as_text = [sorted(NUMBERS).index(NUMBERS[column]) for column in some()]
    assert accuracy(columns(classes=NUMBERS), Columned(as_text, some())) == 1  # numbered so, but without names
    assert accuracy(columns(classes=sorted(NUMBERS)), Columned(as_text, as_text)) == 1
    assert accuracy(columns(classes=sorted(NUMBERS)), Columned(some(), as_text)) == 1


def test_splits_that_show_other_classes_go_by_names(tmp_path):
    pair = image_folder(some()), image_folder(some(0, 3))
    assert accuracy(columns(), pair) == accuracy(columns(classes=NUMBERS), pair) == 1
    for teacher in (columns(), columns(classes=WORDS)):
        words = Columned(some(), classes=WORDS), Columned([0, 1] * 9, [2, 1] * 9, classes=["two", "one"])
        assert accuracy(teacher, words) == 1
    root = folders(folders(tmp_path, WORDS, splits=("train", "val")), only(*range(1, 8), names=WORDS), splits=("test",))
    assert accuracy(columns(classes=WORDS), f"images:{root}") == 1
    check_complete(load_data(f"images:{root}"))
    folders(root, [None, "twelve"], splits=("test",))
    with pytest.raises(UserError, match=r"\('twelve'\) of .* has no training sample"):
        check_complete(load_data(f"images:{root}"))
    with pytest.raises(UserError, match="no class 'twelve'"):
        accuracy(columns(classes=WORDS), f"images:{root}")


def test_every_split_is_judged(tmp_path):
    """One that is numbered otherwise, and one whose classes of other names are others."""
    for n, each in enumerate(((3, 3), (9, 3))):
        root = folders(tmp_path / str(n), NUMBERS, each[0], splits=("train",))
        folders(root, sorted(NUMBERS), each[1], splits=("test",))
        with pytest.raises(
            UserError, match=r"in several orders, the train samples in .* number and the test samples in"
        ):
            accuracy(columns(), f"images:{root}")
    names = [f"c{k:02d}" for k in range(COUNT)]
    other = [*names[:8], "c08x", "c09x", *names[10:]]
    root = folders(tmp_path / "names", other, 9)
    assert accuracy(columns(classes=names), f"images:{root}") == 1
    for split in ("train", "test"):
        (root / split / "c08x").rename(root / "aside")
        (root / split / "c09x").rename(root / split / "c08x")
        (root / "aside").rename(root / split / "c09x")
        with pytest.raises(UserError, match="has no class 'c08x', 'c09x'"):
            accuracy(columns(classes=names), f"images:{root}")


def test_masks_are_brought_into_the_models_order():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, x):
            return self.scale * (1 - (x - torch.tensor([0.0, 0.5, 1.0])[None, :, None, None]).abs())

    masks = torch.randint(0, 3, (8, 6, 6), generator=torch.Generator().manual_seed(0))
    pixels = (torch.tensor([0, 128, 255], dtype=torch.uint8)[masks])[:, None]

    class Scenes(TensorDataset):
        classes = ("c", "a", "b")

    data = Scenes(pixels, torch.tensor([1, 2, 0])[masks])
    model = Model(Pixels(), InputSpec(channels=1), classes=("a", "b", "c"), task="segmentation")
    assert protege.evaluate(model, data)["miou"] == 1


# --- a set that lacks classes


@pytest.mark.parametrize("shown", [some(11), some(0), [7, 7], [7]])
def test_the_number_of_classes_is_the_models(shown):
    assert accuracy(columns(), Columned(shown)) == accuracy(columns(classes=WORDS), Columned(shown)) == 1
    assert accuracy(columns(classes=WORDS), image_folder(shown, WORDS)) == 1


def test_folders_named_by_numbers_are_outputs(tmp_path):
    root = folders(tmp_path, only(1, 3, 10, 11))
    for model in (columns(), columns(classes=NUMBERS), columns(classes=WORDS)):
        assert accuracy(model, f"images:{root}") == 1
    with pytest.raises(UserError, match=r"label 12 of train sample 0 .* 0 to 11 is expected"):
        accuracy(columns(), Columned([12, 3], [1, 3]))
    with pytest.raises(UserError, match="12 outputs but the data has 4 classes, and the model does not name"):
        accuracy(columns(), f"images:{folders(tmp_path / 'words', only(1, 3, 10, 11, names=WORDS))}")


def test_a_student_learns_the_teachers_classes(tmp_path):
    """Four classes of twelve, brought into the teacher's order: those without samples have no figures."""
    root = folders(tmp_path / "photos", only(1, 3, 10, 11, names=WORDS), each=5)
    teacher = columns(classes=WORDS)
    run = protege.distill(
        teacher, "zoo:mlp?hidden=32", f"images:{root}", out=tmp_path / "run", epochs=30, views=1, lr=0.1
    )
    assert run.result["teacher"]["metrics"]["accuracy"] == 1
    assert run.metrics["accuracy"] == 1
    assert [k for k, share in enumerate(run.result["student"]["per_class"]) if share is not None] == [1, 3, 10, 11]
    saved = protege.load_model(tmp_path / "run/student")
    assert (saved.classes, saved.named) == (WORDS, True)
    assert accuracy(saved, image_folder([1, 3, 10, 11], WORDS)) == 1


def test_one_image_of_each_class_can_teach_and_be_measured(tmp_path):
    root = folders(tmp_path / "photos", NUMBERS, each=1, splits=("",))
    run = protege.distill(columns(), "zoo:mlp", f"images:{root}", out=tmp_path / "run", epochs=2, views=1)
    assert set(run.metrics) == {"agreement"}
    assert run.student.classes == NUMBERS
    assert accuracy(columns(classes=NUMBERS), f"images:{root}") == 1
    with pytest.raises(UserError, match=r"too few samples \(12\) to hold out"):
        protege.train("zoo:mlp", f"images:{root}", out=tmp_path / "other", epochs=1)


def test_a_trained_students_own_folder_settles_the_order(tmp_path):
    root = folders(tmp_path / "photos", NUMBERS)
    run = protege.train("zoo:mlp", f"images:{root}?order=text", out=tmp_path / "run", epochs=30, lr=0.1)
    assert run.student.classes == tuple(sorted(NUMBERS))
    again = protege.train(str(run.out / "student"), f"images:{root}", out=tmp_path / "more", epochs=1)
    assert again.result["student"]["before"]["accuracy"] == run.metrics["accuracy"] > 0.5
    assert again.student.classes == run.student.classes
    unnamed = protege.train("zoo:mlp", Columned(some()), out=tmp_path / "bare", epochs=1).student
    assert (unnamed.classes, unnamed.named) == (NUMBERS, False)
    assert not protege.load_model(tmp_path / "bare/student").named


def test_numbers_saved_by_version_01_are_no_names(tmp_path):
    folder = columns(classes=NUMBERS).save(tmp_path / "model")
    config = json.loads((folder / storage.CONFIG).read_text())
    assert config["named"]
    for classes, named in ((NUMBERS, False), (WORDS, True), (sorted(NUMBERS), True)):
        old = {key: value for key, value in config.items() if key != "named"} | {"classes": list(classes)}
        (folder / storage.CONFIG).write_text(json.dumps(old))
        assert protege.load_model(folder, network=Columns()).named == named


def test_a_student_of_another_order_is_refused(tmp_path):
    data = load_data(f"images:{folders(tmp_path, WORDS)}")
    with pytest.raises(UserError, match=r"output 0 of the student .* is class 'eight'"):
        protege.distill(columns(classes=WORDS), columns(classes=sorted(WORDS)), data, out=tmp_path / "run", epochs=1)


def test_every_command_brings_the_data_into_order(tmp_path):
    spec = f"images:{folders(tmp_path / 'photos', WORDS)}"
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 2 * COUNT, COUNT))
    with torch.no_grad():
        network[0].weight.copy_(torch.ones(8, 1, 1, 1) + torch.arange(8).view(8, 1, 1, 1) / 100)
        network[0].bias.zero_()
        network[3].weight.copy_(torch.eye(COUNT).repeat(1, 16) * 4)
        network[3].bias.zero_()
    teacher = Model(network, InputSpec(channels=1, size=(2, COUNT)), classes=WORDS)
    assert protege.diagnose(teacher, spec).result["teacher"]["test"]["accuracy"] == 1
    small = protege.shrink(teacher, ratio=0.5, data=spec, out=tmp_path / "small")
    assert json.loads((tmp_path / "small/shrink.json").read_text())["before"]["metrics"]["accuracy"] == 1
    assert (small.classes, small.named) == (WORDS, True)
    run = protege.distill(teacher, small, spec, "fskd", tmp_path / "run")
    assert run.result["teacher"]["metrics"]["accuracy"] == run.metrics["accuracy"] == 1
    assert run.student.classes == WORDS
    exported = protege.export(teacher, to="onnx", data=spec, out=tmp_path / "file")
    assert exported["metrics"] == {"float": exported["metrics"]["float"], "exported": exported["metrics"]["float"]}
    assert exported["metrics"]["float"]["accuracy"] == 1


@pytest.mark.parametrize(
    "signature", ["num_classes=12", "num_classes", "num_classes=None", "", "**options", "num_classes=3"]
)
def test_a_factory_needs_no_other_word(tmp_path, monkeypatch, signature):
    monkeypatch.syspath_prepend(tmp_path)
    module = f"nets_{abs(hash(signature))}"
    (tmp_path / f"{module}.py").write_text(
        f"import protege, test_classes\ndef teacher({signature}):\n    return test_classes.Columns()\n"
    )
    root = folders(tmp_path / "photos", only(1, 3, 10, 11))
    assert accuracy(f"{module}:teacher", f"images:{root}") == 1
    if signature != "num_classes":
        assert protege.load_model(f"{module}:teacher").network is not None


def test_a_default_that_does_not_fit_the_data_gives_way(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_strict.py").write_text(
        "import test_classes\nfrom torch import nn\ndef teacher(num_classes=1000):\n"
        "    if num_classes != 12:\n        raise ValueError('weights are for 12')\n"
        "    return test_classes.Columns()\n"
        "def student(num_classes=1000):\n    return nn.Sequential(nn.Flatten(), nn.Linear(24, num_classes))\n"
    )
    data = load_data(Columned(some()))
    assert accuracy("nets_strict:teacher", data) == 1
    assert in_order_of(protege.load_model("nets_strict:student", data=data), data).classes == NUMBERS


def test_a_network_may_carry_names():
    network = Columns()
    network.config = type("Config", (), {"id2label": dict(enumerate(WORDS))})()
    assert accuracy(network, image_folder(some(2), WORDS)) == 1
    network.config.id2label = {k: f"LABEL_{k}" for k in range(COUNT)}
    assert protege.load_model(network, data=load_data(Columned(some())), trained=True).classes == ()


# --- names that the user gives, and ImageNet's


def written(path: Path, names) -> Path:
    path.write_text("\n".join(names) + "\n\n")
    return path


def test_names_given_for_a_network_that_has_none(tmp_path, caplog):
    """In every entry point, as a file and as a list; the data is brought into their order, and the student has them."""
    root, file = folders(tmp_path / "photos", WORDS, each=5), written(tmp_path / "names.txt", WORDS)
    other = folders(tmp_path / "other", only(1, 3, 10, 11, names=[f" {word.title()}_" for word in WORDS]))
    with pytest.raises(UserError, match=r"outputs' names as classes=…"):
        accuracy(columns(), f"images:{other}")
    for names in (file, {word: number for number, word in enumerate(WORDS)}):
        assert accuracy(columns(), f"images:{other}", classes=names) == 1
    assert "'Eleven' is taken for the model's 'eleven'" in caplog.text.replace("' Eleven_'", "'Eleven'")
    assert protege.diagnose(columns(), f"images:{root}", classes=file).result["teacher"]["test"]["accuracy"] == 1
    recipe = {"student": "zoo:mlp", "data": f"images:{root}", "epochs": 1, "classes": str(file)}
    (tmp_path / "recipe.toml").write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in recipe.items()))
    run = protege.distill(columns(), out=tmp_path / "run", recipe=tmp_path / "recipe.toml")
    assert run.result["teacher"]["metrics"]["accuracy"] == 1
    assert (run.student.classes, run.student.named) == (WORDS, True)
    again = protege.distill(columns(), out=tmp_path / "run", recipe=tmp_path / "recipe.toml", resume=True)
    assert again.metrics == run.metrics
    bare = protege.distill(columns(), "zoo:mlp", Columned(some()), out=tmp_path / "bare", classes=WORDS, epochs=1)
    assert bare.student.classes == protege.load_model(tmp_path / "bare/student").classes == WORDS
    assert columns().classes == ()


def test_names_given_for_a_student_that_is_trained(tmp_path):
    """A fresh one gets an output for each; one that was trained before without names gets these."""
    root, names = folders(tmp_path / "photos", only(1, 3, 10, 11, names=WORDS), each=5), WORDS
    run = protege.train("zoo:mlp", f"images:{root}", out=tmp_path / "run", epochs=1, classes=names)
    assert run.student.classes == WORDS
    unnamed = protege.train("zoo:mlp", Columned(some()), out=tmp_path / "bare", epochs=1)
    assert not unnamed.student.named
    more = protege.train(str(tmp_path / "bare/student"), Columned(some()), out=tmp_path / "m", epochs=1, classes=names)
    assert more.student.classes == WORDS
    assert more.result["student"]["before"]["accuracy"] == unnamed.metrics["accuracy"]
    named = protege.train(str(tmp_path / "m/student"), f"images:{root}", out=tmp_path / "n", epochs=1)
    assert named.student.classes == WORDS


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["a", "b"], "names 2 classes but has 12 outputs"),
        ([*WORDS[:-1], "one"], "have 'one' twice"),
        (12, "are no names"),
        ({"a", "b"}, "has no order"),
        (["", *WORDS[1:]], "empty"),
        ("missing.txt", "does not exist; expected a classes file"),
        ("empty.txt", "line 2 of .*empty.txt' is empty"),
        ("twice.txt", "have 'a' twice"),
        (".", "is a directory"),
    ],
)
def test_names_given_that_are_none(tmp_path, monkeypatch, given, sentence):
    monkeypatch.chdir(tmp_path)
    written(Path("empty.txt"), ["a", "", "b"])
    written(Path("twice.txt"), ["a", "b", "a"])
    with pytest.raises(UserError, match=sentence) as caught:
        protege.distill(columns(), "zoo:mlp", Columned(some()), out="run", epochs=1, classes=given)
    assert ". " not in str(caught.value).replace(".txt", "")
    for call in (accuracy, protege.diagnose):
        with pytest.raises(UserError, match=sentence):
            call(columns(), Columned(some()), classes=given)
    assert not Path("run").exists()


def test_names_given_for_a_network_that_has_others():
    assert accuracy(columns(classes=WORDS), Columned(some()), classes=[word.upper() for word in WORDS[::-1]]) == 1
    with pytest.raises(
        UserError, match=r"names its 12 classes itself .'zero', 'one', 'two' and 9 more.* leave them out"
    ):
        accuracy(columns(classes=WORDS), Columned(some()), classes=NUMBERS)


def test_classes_that_the_network_has_not_are_all_named(tmp_path):
    more = Columned(some(), classes=[*WORDS, "newt", "owl", "fox"], shown=[*some()])
    more.own[:3] = [12, 13, 14]
    with pytest.raises(UserError, match=r"has no class 'newt', 'owl', 'fox', which the data has"):
        accuracy(columns(classes=WORDS), more)
    instead = [*WORDS[:-1], "owl"]
    with pytest.raises(UserError, match=r"has no class 'owl', which the data has"):
        accuracy(columns(classes=WORDS), Columned([11, 1] * 9, [2, 1] * 9, classes=instead))
    assert accuracy(columns(classes=WORDS), Columned(some(), classes=instead)) == 1  # another word for it


class Thousand(Columns):
    """An ImageNet network: its outputs at these places are the columns."""

    def __init__(self, places, count=1000):
        super().__init__()
        self.places, self.count = places, count

    def forward(self, x):
        return torch.zeros(len(x), self.count).index_copy(1, torch.tensor(self.places), super().forward(x))


def thousand_words(background=False) -> list[str]:
    """As libraries call them, though most only by numbers."""
    words = {number: f"{word}, and a synonym" for number, word in imagenet._KNOWN.items()}
    return ["background"] * background + [words.get(number, f"word {number}") for number in range(1000)]


@pytest.mark.parametrize("first", [0, 1])
def test_folders_called_by_synsets_are_known_to_imagenet_networks(tmp_path, first):
    chosen = [3, 7, 12, 40, 200, 207, 281, 340, 404, 817, 963, 999]
    synsets = imagenet.synsets()
    root = folders(tmp_path / "photos", [synsets[place] for place in chosen], each=5)
    mapping = folders(tmp_path / "mapping", [f"{synsets[place]} some, words" for place in chosen])
    network, count = Thousand([place + first for place in chosen], 1000 + first), 1000 + first
    words = thousand_words(background=bool(first))
    for model in (Model(network, InputSpec(channels=1), classes=names) for names in ((), words)):
        assert accuracy(model, f"images:{root}") == accuracy(model, f"images:{mapping}") == 1
    model = Model(network, InputSpec(channels=1), classes=words)
    run = protege.distill(model, "zoo:mlp", f"images:{root}", out=tmp_path / "run", epochs=1)
    assert run.student.classes == tuple(words)
    bare = protege.distill(
        Model(network, InputSpec(channels=1)), "zoo:mlp", f"images:{root}", out=tmp_path / "bare", epochs=1
    )
    assert bare.student.classes == imagenet.outputs(count)
    assert (
        accuracy(Model(Columns(), InputSpec(channels=1), classes=[synsets[p] for p in chosen]), f"images:{root}") == 1
    )
    folders(root, ["n99999999"], splits=("test",))
    with pytest.raises(UserError, match="no class 'n99999999'"):
        accuracy(model, f"images:{root}")


def test_a_thousand_classes_are_imagenets_only_where_it_has_them():
    assert len(set(imagenet.synsets())) == 1000
    assert list(imagenet.synsets()) == sorted(imagenet.synsets())
    assert imagenet.as_synsets(thousand_words()) == imagenet.synsets()
    assert imagenet.as_synsets(sorted(thousand_words())) == ()
    assert imagenet.as_synsets(["n01440764", "tench"]) == imagenet.as_synsets([]) == ()
