"""Text as data: what its blocks hold, where its parts come from, and what is refused."""

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from protege import distill, train
from protege.data import CLEAN, Augment, Text, bare_batches, batches, forward_size, load_data
from protege.data.labels import UNLABELLED
from protege.errors import UserError
from protege.models import check_classes, load_model
from protege.tasks import TASKS
from protege.training.evaluate import evaluate

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "the", "cat"]


def write(folder: Path, lines: int = 60, name: str = "train.txt", seed: int = 0) -> Path:
    """A text of lines of which each is a rotation of the same words, so that there is something to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(WORDS), (lines,), generator=generator).tolist()
    text = "".join(f" {' '.join(WORDS[s:] + WORDS[:s])} \n" for s in starts)
    (folder / name).write_text(text)
    return folder


def stream(samples: Text) -> list[int]:
    labels = samples.fetch(torch.arange(len(samples)), CLEAN, Augment()).labels.flatten()
    return labels[labels != UNLABELLED].tolist()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 15), st.integers(0, 3))
def test_blocks_hold_every_word_once_behind_the_words_before_it(count, length, context, view) -> None:
    tokens = torch.randint(0, 9, (count,), dtype=torch.int32)
    samples = Text(tokens, 9, 1, length, context)
    assert stream(samples) == tokens.tolist()
    before = [1] * (context + 1) + tokens.tolist()
    batch = samples.fetch(torch.randperm(len(samples)), view, Augment())
    assert batch.inputs.shape == (len(samples), *samples.shape)
    assert batch.labels.shape == (len(samples), length)
    for position, inputs, labels in zip(batch.index.tolist(), batch.inputs, batch.labels, strict=True):
        start = position * length
        held = before[start : start + context + length]
        assert inputs[: len(held)].tolist() == held
        for at, label in enumerate(labels.tolist()):
            assert label == (tokens[start + at] if start + at < count else UNLABELLED)


def test_a_file_is_cut_into_contiguous_parts(tmp_path, caplog) -> None:
    write(tmp_path, 100)
    data = load_data(f"text:{tmp_path / 'train.txt'}")
    everything = (tmp_path / "train.txt").read_text().replace("\n", " <eos>").split()
    together = [data.classes[n] for part in (data.train, data.val, data.test) for n in stream(part)]
    assert together == everything
    sizes = [len(part.tokens) / len(everything) for part in (data.train, data.val, data.test)]
    assert sizes == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert data.task == "language"
    assert not data.augment.changes


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train", "valid", "test"),
    ],
)
def test_layouts(tmp_path, names) -> None:
    for seed, name in enumerate(names):
        write(tmp_path, 10 + seed, name, seed)
    (tmp_path / "README").write_text("about")
    data = load_data(f"text:{tmp_path}")
    line = len(WORDS) + 1
    assert [len(part.tokens) for part in (data.train, data.val, data.test)] == [10 * line, 11 * line, 12 * line]


def test_without_training_text_the_validation_text_is_trained_on(tmp_path, caplog) -> None:
    caplog.set_level("INFO", "protege")
    write(tmp_path, 50, "valid.txt"), write(tmp_path, 20, "test.txt")
    data = load_data(f"text:{tmp_path}")
    assert "validation text is trained on" in caplog.text
    assert "held out" in caplog.text
    line = len(WORDS) + 1
    assert len(data.train.tokens) + len(data.val.tokens) == 50 * line
    assert len(data.test.tokens) == 20 * line


def test_the_vocabulary_is_the_most_frequent_words_of_training(tmp_path) -> None:
    (tmp_path / "train.txt").write_text("b b b a a c\n" * 40)
    (tmp_path / "valid.txt").write_text("d a b\n" * 40)
    (tmp_path / "test.txt").write_text("c d\n" * 40)
    full = load_data(f"text:{tmp_path}?length=5")
    assert full.classes == ("<unk>", "<eos>", "b", "a", "c")
    assert stream(full.val)[:4] == [0, 3, 2, 1]
    few = load_data(f"text:{tmp_path}?vocabulary=3&length=5")
    assert few.classes == ("<unk>", "<eos>", "b")
    assert stream(few.test)[:3] == [0, 0, 1]


def test_words_of_what_is_held_out_of_a_file_are_not_in_the_vocabulary(tmp_path) -> None:
    (tmp_path / "one.txt").write_text("a b\n" * 80 + "c a\n" * 10 + "d a\n" * 10)
    data = load_data(f"text:{tmp_path / 'one.txt'}?length=5")
    assert data.classes == ("<unk>", "<eos>", "a", "b")
    assert stream(data.test)[:3] == [0, 2, 1]


def test_text_is_opened_with_the_vocabulary_of_a_model(tmp_path) -> None:
    first, other = write(tmp_path / "a"), tmp_path / "b"
    data = load_data(f"text:{first}")
    folder = load_model("zoo:lstm?hidden=4", data=data).save(tmp_path / "model")
    other.mkdir()
    (other / "train.txt").write_text("the bird sat\n" * 50)
    with pytest.raises(UserError, match=r"knows 12 words but the data's vocabulary has 5; open the text with the voc"):
        check_classes(load_model(folder), load_data(f"text:{other}"))
    same = load_data(f"text:{other}?vocabulary={folder}")
    assert same.classes == data.classes
    check_classes(load_model(folder), same)


def test_a_teacher_with_another_vocabulary_of_the_same_size_is_refused(tmp_path) -> None:
    write(tmp_path / "a")
    folder = load_model("zoo:lstm?hidden=4", data=load_data(f"text:{tmp_path / 'a'}")).save(tmp_path / "model")
    text = (tmp_path / "a" / "train.txt").read_text()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.txt").write_text(text.replace("dog", "cow"))
    data = f"text:{tmp_path / 'b'}"
    with pytest.raises(UserError, match=r"another vocabulary than the data, as word"):
        distill(str(folder), "zoo:lstm?hidden=4", data, method="kd", out=tmp_path / "run")


@pytest.mark.parametrize("context", [0, 3])
def test_perplexity_is_that_of_a_naive_loop(context) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (50,), dtype=torch.int32)
    samples = Text(tokens, 7, 1, 6, context)
    model = load_model("zoo:lstm?hidden=5", num_classes=7)
    model.network.context = context
    found, _ = evaluate(model, samples, TASKS["language"].metrics(7))
    total = 0.0
    network = model.network.double().eval()
    before = [1, *tokens.tolist()]
    for at, word in enumerate(tokens.tolist()):
        first = max(0, at // 6 * 6 - context)
        read = [1] * (context - at // 6 * 6 if at // 6 * 6 < context else 0) + before[first : at + 1]
        network.context = 0
        logits = network(torch.tensor([read]))[0, -1]
        total -= F.log_softmax(logits, 0)[word].item()
    assert found["perplexity"] == pytest.approx(math.exp(total / 50), rel=1e-5)
    assert found["nll"] == pytest.approx(total / 50, rel=1e-5)


def test_rows_leave_out_what_a_network_says_about_the_context() -> None:
    outputs, labels = torch.randn(2, 9, 5), torch.tensor([[1, 2, 3], [4, -100, 0]])
    rows, found, weights = TASKS["language"].rows(outputs, labels)
    assert torch.equal(rows, outputs[:, 6:].flatten(0, 1))
    assert found.tolist() == [1, 2, 3, 4, -100, 0]
    assert weights.tolist() == [1, 1, 1, 1, 0, 1]


def test_metrics_of_uniform_logits_are_the_vocabulary() -> None:
    metrics = TASKS["language"].metrics(11)
    metrics.update(torch.zeros(2, 4, 11), torch.randint(0, 11, (2, 4)))
    assert metrics.compute()["perplexity"] == pytest.approx(11)


@given(st.integers(10, 300_000), st.integers(1, 1024))
@settings(deadline=None)
def test_batches_without_learning_bound_their_logits(words, length) -> None:
    samples = Text(torch.zeros(length, dtype=torch.int32), words, 1, length, 0)
    size = forward_size(samples, 500)
    assert size >= 1
    assert size == 1 or size * length * words <= 16 * (2**23 + 16)


@pytest.mark.parametrize("mark", ["<eos>", "</s>", "<|endoftext|>", "[SEP]"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n"])
def test_a_line_that_ends_in_a_mark_gets_no_second_one(tmp_path, mark, ending) -> None:
    """However lines end, each has one end; and so the text is that of the lines without marks."""
    lines = ["a b", "b c a", "c"] * 40
    marked = "".join(f"{line} {mark}{ending}" for line in lines)
    for name, text in (("plain", "".join(f"{line}\n" for line in lines)), ("marked", "\ufeff" + marked)):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    plain, own = (load_data(f"text:{tmp_path / name}.txt?length=5") for name in ("plain", "marked"))
    assert own.classes == plain.classes == ("<unk>", "<eos>", "a", "b", "c")
    assert [stream(part) for part in (own.train, own.val, own.test)] == [
        stream(part) for part in (plain.train, plain.val, plain.test)
    ]


def test_marks_of_some_lines_only(tmp_path) -> None:
    """`<eos>` is never doubled; another mark is a word where most lines have none."""
    (tmp_path / "train.txt").write_text("a <eos>\nb\n\nc </s>\n" * 30)
    data = load_data(f"text:{tmp_path}?length=5")
    begin = [data.classes[n] for n in stream(data.train)[:8]]
    assert begin == ["a", "<eos>", "b", "<eos>", "<eos>", "c", "</s>", "<eos>"]


def test_empty_lines_of_a_text_with_marks_are_none(tmp_path) -> None:
    (tmp_path / "train.txt").write_text("\ufeffa <eos>\n\n\ufeffb <eos>\n" * 30)
    data = load_data(f"text:{tmp_path}?length=5")
    assert [data.classes[n] for n in stream(data.train)[:4]] == ["a", "<eos>", "b", "<eos>"]


def test_a_text_of_unknown_words_is_told(tmp_path, caplog) -> None:
    (tmp_path / "train.txt").write_text("a a b c d e f\n" * 60)

    def warnings() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.levelno >= logging.WARNING]

    load_data(f"text:{tmp_path}?length=5")
    assert not warnings()
    load_data(f"text:{tmp_path}?length=5&vocabulary=3")
    (record,) = warnings()
    assert "the commonest word of" in record.getMessage()
    assert "is <unk> (62 % of train, 62 % of test, 62 % of val)" in record.getMessage()


@pytest.mark.parametrize(
    ("files", "spec", "message"),
    [
        ({}, "", "folder '.*' holds no text to train on; train.txt .* is expected"),
        ({"train.txt": b""}, "", "'.*train.txt' is empty; a text with words is expected"),
        ({"train.txt": b" \n\n"}, "", "'.*train.txt' is empty"),
        ({"train.txt": b"a b c\n" * 99 + b"\0"}, "", "'.*train.txt' is not text in UTF-8; give plain text"),
        ({"train.txt": b"\xff\xfe\x80"}, "", "is not text in UTF-8"),
        ({"train.txt": b"a b c\n" * 5}, "", "has 16 words, fewer than one block of 35; give more text or a smaller"),
        ({"train.txt": b"a"}, "", "too short to hold out a test part"),
        ({"train.txt": b"a b\n" * 99}, "?vocabulary=2", "vocabulary=2 leaves no word beside <unk> and <eos>"),
        ({"train.txt": b"a b\n" * 99}, "?vocabulary=no", "vocabulary=no is neither a number nor a model's folder"),
        ({"train.txt": b"a b\n" * 99}, "?length=0", "length=0 is no number of words; give a whole number from 1"),
        ({"train.txt": b"a b\n" * 99}, "?context=x", "context=x is no number of words; give a whole number from 0"),
        ({"train.txt": b"a b\n" * 99}, "?size=3", "unknown option 'size'; known are vocabulary, length, context"),
        ({"train.txt": b"a", "ptb.train.txt": b"a"}, "", "are both the train text; remove one"),
        ({"train.txt": b"a b\n"}, "?vocabulary=9&tokenizer=x", "were both given; a tokenizer has its own vocabulary"),
    ],
)
def test_refusals(tmp_path, files, spec, message) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_data(f"text:{tmp_path}{spec}")


def test_refusals_of_paths_and_of_models_for_images(tmp_path) -> None:
    with pytest.raises(UserError, match=r"there is no text '.*nowhere'; give a text file, or a folder"):
        load_data(f"text:{tmp_path / 'nowhere'}")
    data = f"text:{write(tmp_path)}"
    with pytest.raises(UserError, match=r"image size 32 cannot be had of .*which is text"):
        load_data(data, image_size=32)
    with pytest.raises(UserError, match=r"zoo:resnet20 takes images but the data is text; choose another, such as"):
        load_model("zoo:resnet20", data=load_data(data))
    with pytest.raises(UserError, match=r"zoo:lstm takes text but the data is images; choose another, such as"):
        load_model("zoo:lstm", data=load_data("digits"))
    images = load_model("zoo:mlp", data=load_data("digits")).save(tmp_path / "mlp")
    with pytest.raises(UserError, match=r"takes images but the data is text; use a language model"):
        check_classes(load_model(images), load_data(data))
    words = load_model("zoo:lstm?hidden=4", num_classes=10).save(tmp_path / "lstm")
    with pytest.raises(UserError, match=r"takes text but the data has images"):
        check_classes(load_model(words), load_data("digits"))
    with pytest.raises(UserError, match=r"fails on an input of shape \[2, 140\]"):
        check_classes(load_model("zoo:gpt_tiny?length=64", data=load_data(data)), load_data(f"{data}?context=105"))


def test_teacher_and_student_on_text(tmp_path) -> None:
    """A small LSTM learns the rotations, an untrained one may not teach, and a GPT learns from the first."""
    for seed, (name, lines) in enumerate({"train": 150, "valid": 20, "test": 20}.items()):
        write(tmp_path / "text", lines, f"{name}.txt", seed)
    data = f"text:{tmp_path / 'text'}?length=16&context=8"
    how = {"optimizer": "adamw", "lr": 0.02, "batch_size": 8, "precision": "fp32"}
    teacher = train("zoo:lstm?hidden=16", data, out=tmp_path / "teacher", epochs=4, **how).result
    assert teacher["task"] == "language"
    assert teacher["student"]["metrics"]["perplexity"] < 7 < 10 < teacher["student"]["before"]["perplexity"]
    spec = str(tmp_path / "teacher")
    kd = distill(spec, "zoo:gpt_tiny?width=16", data, method="kd", out=tmp_path / "kd", epochs=2, views=3, **how).result
    assert kd["teacher"]["metrics"] == teacher["student"]["metrics"]
    assert kd["student"]["metrics"]["perplexity"] < 0.7 * kd["student"]["before"]["perplexity"]
    assert kd["cache"]["views"] == 1
    assert kd["teacher_samples_forwarded"] == kd["data"]["train_samples"]
    assert "erplexity" in (tmp_path / "kd" / "report.html").read_text()
    gpd = distill(spec, "zoo:gpt_tiny?width=16", data, method="gpd", out=tmp_path / "gpd", epochs=2, **how)
    assert gpd.result["student"]["metrics"]["perplexity"] < 0.7 * gpd.result["student"]["before"]["perplexity"]
    assert gpd.student.network.head.weight is gpd.student.network.embed.weight
    plain = distill(spec, "zoo:lstm?hidden=4", data, method="kd", out=tmp_path / "default", epochs=1, views=1)
    assert plain.result["student"]["metrics"]["perplexity"] < plain.result["student"]["before"]["perplexity"]
    assert 'optimizer = "adamw"' in (tmp_path / "default" / "recipe.toml").read_text()
    with pytest.raises(UserError, match=r"augment = 'flip' does not suit text"):
        train("zoo:lstm?hidden=4", data, out=tmp_path / "no", augment="flip")
    fresh = load_model("zoo:lstm?hidden=16", data=load_data(data)).save(tmp_path / "fresh")
    with pytest.raises(UserError, match=r"is at chance level on the transfer set"):
        distill(str(fresh), "zoo:lstm?hidden=8", data, method="kd", out=tmp_path / "no", epochs=1, **how)


def test_phases_without_pixels_still_have_the_words() -> None:
    samples = Text(torch.arange(20, dtype=torch.int32), 20, 1, 6, 2)
    order = [torch.tensor([2, 0]), torch.tensor([1])]
    for bare, whole in zip(
        bare_batches(samples, order, 3, Augment()), batches(samples, order, 3, Augment()), strict=True
    ):
        assert torch.equal(bare.labels, whole.labels)
        assert torch.equal(bare.inputs, whole.inputs)


def test_fingerprints_tell_texts_and_blocks_apart() -> None:
    tokens = torch.arange(20, dtype=torch.int32)
    kinds = [
        Text(tokens, 20, 1, 6, 2),
        Text(tokens, 20, 1, 6, 3),
        Text(tokens, 20, 1, 5, 2),
        Text(tokens + 1, 21, 1, 6, 2),
    ]
    assert len({samples.fingerprint() for samples in kinds}) == len(kinds)
    assert Text(tokens.clone(), 20, 1, 6, 2).fingerprint() == kinds[0].fingerprint()
