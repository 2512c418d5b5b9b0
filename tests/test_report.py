"""Reports of made-up folders: read back with an HTML parser, as a browser would see them."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protege.errors import UserError
from protege.report import study_markdown, write_report, write_run_report, write_study_report
from protege.report.charts import Series, line_chart
from protege.report.page import drawing

RECIPE = 'method = "kd"\ndata = "parquet:/data/birds"\nstudent = "zoo:resnet20"\nseed = 3\n# <b>bold</b>\n'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page shows: its visible text, the text of each tag, all attributes, and whether tags are balanced.

    ``charts`` are the specifications of its charts, by their titles; ``scripts`` is what a browser would run.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self.scripts: list[str] = []
        self.charts: dict[str, dict[str, Any]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"tags left open: {self.open}"
        self.text = " ".join("".join(self.inside["body"]).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            kind = next(attrs for tag, attrs in reversed(self.tags) if tag == "script").get("type")
            assert kind in (None, "application/json")
            if kind:
                assert not set("<>&") & set(data), "nothing in the data of a chart can end it"
                chart = json.loads(data)
                assert chart["title"] not in self.charts
                self.charts[chart["title"]] = chart
            else:
                self.scripts.append(data)
        elif "style" not in self.open:
            for tag in set(self.open):
                self.inside.setdefault(tag, []).append(data)

    @property
    def headline(self) -> str:
        return " ".join("".join(self.inside["h1"]).replace("\u00a0", " ").split())

    def count(self, tag: str, of: str = "") -> int:
        return sum(name == tag and of in [*(attrs.get("class") or "").split(), ""] for name, attrs in self.tags)


def result(**changes: Any) -> dict[str, Any]:
    base = {
        "version": "0.1.0",
        "method": "kd",
        "task": "classification",
        "seed": 3,
        "out": "runs/kd",
        "classes": ["wren", "<script>alert(1)</script>", 'quote" onload="x', "owl"],
        "data": {"name": "birds", "train_samples": 5000, "classes": 4, "fraction": 0.1},
        "teacher": {
            "spec": "zoo:resnet56",
            "params": 860_000,
            "macs": 126_000_000,
            "metrics": {"accuracy": 0.667, "nll": 1.2, "ece": 0.1},
            "per_class": [0.6, 0.7, 0.7, 0.668],
        },
        "student": {
            "spec": "zoo:resnet20",
            "params": 275_200,
            "macs": 41_000_000,
            "before": {"accuracy": 0.25, "nll": 1.39, "ece": 0.01},
            "metrics": {"accuracy": 0.573, "nll": 1.5, "ece": 0.04},
            "per_class": [0.7, 0.5, 0.6, 0.492],
            "confusion": [[70, 30, 0, 0], [10, 50, 40, 0], [0, 40, 60, 0], [0, 0, 51, 49]],
        },
        "phases": [{"name": "kd", "kind": "fit", "epochs": 6, "seconds": 60.0, "best": {"epoch": 5, "accuracy": 0.58}}],
        "seconds": 75.0,
        "student_samples_seen": 30_000,
        "teacher_samples_forwarded": 20_000,
        "timing": {"data": 5.0, "teacher": 10.0, "student": 40.0, "evaluate": 15.0, "other": 5.0},
        "cache": {"path": "/tmp/cache", "bytes": 3 * 2**20, "views": 4, "hits": 10_000, "stored": 20_000},
        "environment": {"torch": "2.13.0", "device": "cpu"},
    }
    return {**base, **changes}


def epoch(number: int, phase: str = "kd", **changes: Any) -> dict[str, Any]:
    event = {
        "event": "epoch",
        "phase": phase,
        "epoch": number,
        "step": 40 * number,
        "lr": 0.1 / number,
        "train": {"loss": 3.0 / number, "task_loss": 2.0 / number, "kd_loss": 1.0 / number},
        "eval": {"accuracy": 0.1 * number, "nll": 2.0 / number, "ece": 0.05},
        "eval_on": "validation",
        "seconds": 10.0,
        "images_per_second": 900.0,
    }
    return {**event, **changes}


def make_run(folder: Path, result: dict[str, Any] | None = None, events: Any = (), recipe: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if recipe:
        (folder / "recipe.toml").write_text(recipe)
    if events:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def study() -> dict[str, Any]:
    def row(method: str, fraction: float, mean: float, gain: tuple[float, float] | None) -> dict[str, Any]:
        return {
            "setting": {"method": method, "fraction": fraction},
            "runs": 3,
            "metrics": {
                "accuracy": {"mean": mean, "interval95": 0.004, "values": [mean - 0.01, mean, mean + 0.01]},
                "nll": {"mean": 1.5, "interval95": None, "values": [1.5]},
            },
            "difference": {"accuracy": {"mean": gain[0], "interval95": gain[1]}} if gain else None,
            "seconds": 754.0,
            "student_samples_seen": 30_000,
            "teacher_samples_forwarded": 20_000,
        }

    return {
        "version": "0.1.0",
        "name": "birds|few",
        "columns": ["method", "fraction"],
        "baseline": {"method": "none"},
        "rows": [
            row("none", 0.1, 0.40, None),
            row("kd", 0.1, 0.4321, (0.0321, 0.008)),
            row("none", 1.0, 0.67, None),
            row("kd", 1.0, 0.665, (-0.005, 0.009)),
            row("a|b", 1.0, 0.60, (-0.07, 0.01)),
        ],
        "runs": [
            {"setting": {"method": "kd", "fraction": 0.1}, "seed": 0, "out": "runs/kd-0", "status": "done"},
            {"setting": {"method": "kd", "fraction": 1.0}, "seed": 0, "out": "runs/absent", "status": "failed"},
        ],
        "teacher": result()["teacher"],
    }


def points(chart: dict[str, Any], series: int = 0) -> list[tuple[float, float]]:
    """The points of a line."""
    return [(row["x"], row[f"s{series}"]) for row in chart["rows"] if f"s{series}" in row]


def said(chart: dict[str, Any]) -> list[str]:
    """What the rings of a chart say, and its level."""
    texts = [text for *_, text in [*chart["best"], *([chart["level"]] if chart["level"] else [])]]
    return [text.replace("\u00a0", " ") for text in texts]


def nothing_is_fetched(page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not any(name in ("src", "href", "xlink:href", "action", "srcset") for name in attrs), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        assert "url(" not in (attrs.get("style") or "")


def test_a_finished_run_says_what_happened(tmp_path: Path) -> None:
    fills = [{"event": "fill", "source": "teacher", "view": view, "samples": 5000, "seconds": 2.5} for view in range(4)]
    folder = make_run(tmp_path / "run", result(), [*fills, *(epoch(n) for n in range(1, 7))])
    path = write_run_report(folder)
    assert path == folder / "report.html"
    assert sorted(file.name for file in folder.iterdir()) == [
        "metrics.jsonl",
        "recipe.toml",
        "report.html",
        "result.json",
    ]
    page = Page(path)
    assert page.headline == (
        "The student reaches 57.3 % accuracy on birds with 5,000 images (10 % of the training set); "
        "it has 32 % of the teacher’s parameters and keeps 86 % of its accuracy."
    )
    nothing_is_fetched(page)
    for shown in (
        "66.7 %",
        "25.0 %",
        "+32.3 points",
        "−9.4 points",
        "30,000",
        "20,000",
        "3.0 MiB",
        "1 min 15 s",
        "53 %",
    ):
        assert shown in page.text, shown
    assert f'protege.load_model("{(folder / "student").resolve()}")' in page.text
    assert "--data parquet:/data/birds" in page.text
    assert "unfinished" not in page.text
    marked = {title: said(chart) for title, chart in page.charts.items() if "on the validation set" in title}
    assert marked["Accuracy on the validation set"] == ["best: 60.0 % at epoch 6", "teacher 66.7 % (test set)"]
    assert marked["NLL on the validation set"] == ["best: 0.333 at epoch 6", "teacher 1.200 (test set)"]
    assert marked["ECE on the validation set"] == ["teacher 10.0 % (test set)"], "calibration has no best epoch"
    assert points(page.charts["Accuracy on the validation set"]) == [(n, 10.0 * n) for n in range(1, 7)]
    assert page.count("article") == 3


def test_names_from_outside_are_only_ever_text(tmp_path: Path) -> None:
    evil = "</code><script>alert(2)</script>"
    told = result(data={"name": evil, "train_samples": 10, "classes": 4, "fraction": None}, method=evil)
    told["phases"][0]["name"] = evil
    folder = make_run(
        tmp_path / "run <i>", told, [epoch(1, phase=evil), epoch(2, phase=evil)], recipe=f'data = "{evil}"'
    )
    page = Page(write_report(folder))
    nothing_is_fetched(page)
    assert page.scripts[0] == drawing(), "the library as it is"
    assert "Redistributions of source code must retain" in page.scripts[0], "under its licences"
    assert len(page.scripts) == 2
    assert "alert" not in page.scripts[1]
    assert page.charts["What the student takes for what"]["names"][1] == "<script>alert(1)</script>"
    assert "<script>alert(1)</script>" in page.text
    assert not any("onload" in attrs for _, attrs in page.tags)


def test_an_unfinished_run_shows_what_there_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", None, [epoch(1), epoch(2), epoch(3), epoch(2, eval={"accuracy": 0.9})])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "pha')
    page = Page(write_report(folder))
    assert page.headline.startswith("Unfinished: after 3 epochs of phase kd")
    assert "30.0 % accuracy on the validation set" in page.headline
    assert "--resume" in page.text
    assert points(page.charts["Accuracy on the validation set"]) == [(1, 10), (2, 90), (3, 30)]
    assert points(page.charts["Training loss"], 1) == [(1, 2), (2, 1), (3, 0.666667)]
    assert "load_model" not in page.text


def test_an_unfinished_run_uses_what_its_start_told(tmp_path: Path) -> None:
    plan = [{"name": "kd", "kind": "fit", "epochs": 60}]
    start = {"event": "start", "method": "kd", "phases": plan, "teacher": result()["teacher"]}
    page = Page(write_report(make_run(tmp_path / "run", None, [start, epoch(1)])))
    assert (
        page.headline
        == "Unfinished: after 1 of 60 epochs of phase kd the student stands at 10.0 % accuracy on the validation set."
    )
    assert "teacher 66.7 %" in page.text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert page.headline == "Unfinished: no epoch is done yet."


def test_without_a_teacher(tmp_path: Path) -> None:
    told = result(method="none", teacher=None, cache=None)
    told["student"].pop("confusion")
    page = Page(write_report(make_run(tmp_path / "run", told, [epoch(1)])))
    assert page.headline.startswith("Trained on the labels alone, the student reaches 57.3 % accuracy")
    assert "teacher’s" not in page.headline
    assert page.count("article") == 2
    assert "What the student takes for what" not in page.charts
    assert "All classes, best first." in page.text


def test_a_student_that_guesses_is_called_so(tmp_path: Path) -> None:
    told = result()
    for accuracy, warned in ((0.24, True), (0.25, True), (0.573, False)):
        told["student"]["metrics"]["accuracy"] = accuracy
        page = Page(write_run_report(make_run(tmp_path / str(accuracy), told, [epoch(1)])))
        assert page.headline.endswith("no better than guessing.") == warned


@pytest.mark.parametrize("classes", [2, 1000])
def test_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    told = result(classes=[f"class {n}" for n in range(classes)])
    told["data"]["classes"] = classes
    told["teacher"]["per_class"] = [0.5] * classes
    told["student"]["per_class"] = [n / classes for n in range(classes)]
    told["student"]["confusion"] = [[9, 1], [2, 8]] if classes == 2 else None
    page = Page(write_report(make_run(tmp_path / "run", told, [{**epoch(n + 1), "epoch": n} for n in range(300)])))
    bars = page.charts["Class by class: student against teacher, accuracy"]["rows"]
    assert len(bars) == min(classes, 20)
    assert [bar["bars"] for bar in bars] == sorted((bar["bars"] for bar in bars), reverse=True)
    assert ("What the student takes for what" in page.charts) == (classes == 2)
    if classes == 1000:
        assert "Of 1000 classes 499 are better and 500 worse" in page.text
        assert bars[0] == {
            "name": "class 999",
            "bars": [[pytest.approx(49.9), "good"]],
            "figure": "+49.9",
            "text": "50 → 100\u00a0%",
        }
        assert bars[-1]["name"] == "class 0"


def test_many_phases_and_solves(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"event": "block", "phase": "align", "name": f"layer{n}", "error": 0.5, "rank": 3} for n in (1, 2)
    ]
    events.append({"event": "solve", "phase": "align", "blocks": 2, "values": {"error": 0.5}})
    for stage in ("stage1", "stage2", "stage3"):
        for n in range(1, 5):
            events.append(epoch(n, stage, train={"loss": 10.0**-n}, eval={"loss": 2 * 10.0**-n}))
    events += [epoch(n, "head", train={"loss": 1.0}, eval={"accuracy": 0.2 * n}) for n in range(1, 4)]
    laid_out = [{"name": "align", "kind": "solve"}, {"name": "head", "kind": "fit", "learning_parameters": 2_060_000}]
    events.insert(0, {"event": "start", "method": "skd", "phases": laid_out})
    phases = [{"name": "align", "kind": "solve", "epochs": 0, "seconds": 1.5, "best": {}}]
    phases += [
        {"name": name, "kind": "fit", "epochs": 4, "seconds": 8.0, "best": {"epoch": 4, "loss": 0.01}}
        for name in ("stage1", "stage2", "stage3", "head")
    ]
    page = Page(write_report(make_run(tmp_path / "run", result(method="skd", phases=phases), events)))
    assert page.headline.startswith("The student reaches 57.3 % accuracy, up from 25.0 %,")
    for shown in ("Loss of each phase", "stage1", "solved", "layer2", "Log scale", "1.5 s", "2.06 M"):
        assert shown in page.text, shown


def test_other_tasks_are_judged_by_their_own_metric(tmp_path: Path) -> None:
    language = result(task="language", classes=[])
    language["teacher"]["metrics"] = {"perplexity": 82.3, "nll": 4.41}
    language["student"].update(before={"perplexity": 9000.0}, metrics={"nll": 4.5, "perplexity": 90.02}, per_class=None)
    language["student"]["confusion"] = None
    page = Page(write_report(make_run(tmp_path / "lm", language, [epoch(1, eval={"perplexity": 95.0})])))
    assert "reaches a perplexity of 90.0 on birds" in page.headline
    assert "stays 7.7 above its perplexity of 82.3" in page.headline

    segmentation = result(task="segmentation")
    segmentation["teacher"]["metrics"] = {"pixel_accuracy": 0.9, "miou": 0.5}
    segmentation["student"].update(before={}, metrics={"pixel_accuracy": 0.89, "miou": 0.52})
    page = Page(write_report(make_run(tmp_path / "seg", segmentation)))
    assert "52.0 % mean IoU" in page.headline
    assert "is 2.0 points better in mean IoU" in page.headline


def test_a_task_that_is_not_known_here_is_judged_by_the_metric_that_it_names_first(tmp_path: Path) -> None:
    told = result(task="embeddings", classes=None)
    told["teacher"]["metrics"] = {"cosine": 1.0, "recall@1": 0.9}
    told["student"] = {"params": 100, "before": {}, "metrics": {"cosine": 0.93, "recall@1": 0.805}}
    events = [epoch(n, eval={"cosine": 0.3 * n, "recall@1": 0.25 * n}) for n in (1, 2, 3)]
    page = Page(write_report(make_run(tmp_path / "run", told, events)))
    assert page.headline.startswith("The student reaches a cosine of 0.930 on birds")
    assert "80.5 %" in page.text
    assert list(page.charts)[:1] == ["Cosine on the validation set"]
    assert points(page.charts["Recall@1 on the validation set"]) == [(1, 25), (2, 50), (3, 75)]


def test_missing_and_broken_figures_are_left_out(tmp_path: Path) -> None:
    told = result(classes=None, timing=None, environment=None, data={}, phases=None, seconds=None)
    told["teacher"] = {"params": None, "metrics": {}}
    told["student"] = {"metrics": {"accuracy": 0.5, "nll": float("nan")}, "per_class": [None, 0.5], "before": None}
    events = [epoch(1, train={"loss": float("nan")}, eval=None), epoch(2, train=None, eval={"accuracy": float("inf")})]
    page = Page(write_report(make_run(tmp_path / "run", told, events, recipe="not = [toml")))
    assert page.headline == "The student reaches 50.0 % accuracy."
    assert "nan" not in page.text.lower().split()


def test_a_study(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    make_run(folder / "runs" / "kd-0", None, [epoch(n) for n in range(1, 4)])
    (folder / "study.json").write_text(json.dumps(study()))
    page = Page(write_study_report(folder))
    nothing_is_fetched(page)
    assert page.headline == (
        "The best accuracy, 67.00 % ± 0.40 over 3 runs, comes from none (fraction 1), the baseline; "
        "the largest gain over none is +3.21 ± 0.80 points, by kd (fraction 0.1)."
    )
    for shown in ("+3.21 ± 0.80 better", "−0.50 ± 0.90 unclear", "−7.00 ± 1.00 worse", "12 min 34 s", "30.0 k"):
        assert shown in page.text, shown
    for fraction, first in (
        ("0.1", [39, 40, 41, 42.21, 43.21, 44.21]),
        ("1", [66, 67, 68, 65.5, 66.5, 67.5, 59, 60, 61]),
    ):
        dots = [x for row in page.charts[f"Fraction {fraction}"]["rows"] for x, _ in row["dots"]]
        assert dots == pytest.approx(first), "a dot for every seed of every row"
    assert page.count("tr", "baseline") == 2
    assert "Accuracy against fraction" in page.text
    assert "kd (fraction 1), seed 0: failed" in page.text
    assert "Curves of the runs" in page.text


def test_a_study_of_one_run_each_or_none(tmp_path: Path) -> None:
    told = study()
    for row in told["rows"]:
        row["runs"] = 1
        row["metrics"]["accuracy"].update(interval95=None, values=[row["metrics"]["accuracy"]["mean"]])
        if row["difference"]:
            row["difference"]["accuracy"]["interval95"] = None
    (tmp_path / "study.json").write_text(json.dumps(told))
    assert "cannot tell a gain over none from chance" in Page(write_report(tmp_path)).headline
    (tmp_path / "study.json").write_text(json.dumps({"name": "new", "rows": [], "runs": []}))
    assert Page(write_report(tmp_path)).headline.startswith("Unfinished")


def test_a_numeric_column_may_hold_a_word(tmp_path: Path) -> None:
    rows = [
        {"setting": {"views": views}, "runs": 3, "metrics": {"accuracy": {"mean": 0.5, "interval95": 0.01}}}
        for views in (16, 1, "all", 4)
    ]
    (tmp_path / "study.json").write_text(json.dumps({"columns": ["views"], "rows": rows, "baseline": {"views": "all"}}))
    page = Page(write_report(tmp_path))
    assert "Accuracy against views" in page.text
    ticks = page.charts["Accuracy against views"]["x"]["ticks"]
    assert ticks == [[0, "1"], [1, "4"], [2, "16"], [3, "all"]]


def test_the_markdown_table() -> None:
    lines = study_markdown(study()).splitlines()
    assert lines[0] == (
        "| method | fraction | accuracy | difference | NLL | runs | time a run | samples seen | teacher samples |"
    )
    assert len(lines) == 2 + 5
    assert lines[2].startswith("| none | 0.1 | 40.00 % ± 0.40 | baseline | 1.500 | 3 | 12 min 34 s | 30,000 | 20,000 |")
    assert "| +3.21 ± 0.80 points |" in lines[3]
    assert lines[6].startswith("| a\\|b |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_samples_held_out_have_a_column(tmp_path: Path) -> None:
    told = study()
    told["rows"][1]["held_out"] = {"accuracy": {"mean": 0.4444, "interval95": 0.01}}
    lines = study_markdown(told).splitlines()
    assert lines[0].startswith("| method | fraction | held out | accuracy |")
    assert lines[2].startswith("| none | 0.1 | — | 40.00 %")
    assert lines[3].startswith("| kd | 0.1 | 44.44 % ± 1.00 | 43.21 %")
    (tmp_path / "study.json").write_text(json.dumps(told))
    page = Page(write_study_report(tmp_path))
    assert "44.44 ± 1.00" in page.text
    assert "Choose settings by" in page.text


def test_bad_folders_are_named_in_one_sentence(tmp_path: Path) -> None:
    for write in (write_report, write_run_report):
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(UserError) as caught:
                write(folder)
            assert str(folder) in str(caught.value)
            assert "\n" not in str(caught.value)
    for name, text in (("result.json", "{torn"), ("study.json", "[1]")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=name):
            write_report(folder)
        assert not (folder / "report.html").exists()
    with pytest.raises(UserError, match=r"study\.json"):
        write_study_report(tmp_path)


def test_a_page_that_is_no_report_is_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", result())
    (folder / "report.html").write_text("my own page")
    with pytest.raises(UserError, match="was made otherwise and is kept: move it away"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "my own page"
    (folder / "report.html").rename(folder / "mine.html")
    write_report(folder)
    write_report(folder)  # over our own


def test_an_old_report_survives_until_the_new_one_is_there(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", result())
    (folder / "report.html").write_text("<footer>Made by protege from the files in this folder.")
    assert "57.3" in Page(write_report(folder)).headline
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_the_phases_table_tells_what_was_kept(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "done", result(), [epoch(1)])))
    assert "timekept" in page.text.replace(" ", "")
    events = [epoch(1, eval={"accuracy": 0.9}), epoch(2, eval={"accuracy": 0.3})]
    for select, kept in (("best", "accuracy 90.0 % (epoch 1)"), ("last", "accuracy 30.0 % (epoch 2)")):
        page = Page(write_report(make_run(tmp_path / select, None, events, recipe=f'select = "{select}"')))
        assert kept in page.text


def test_the_snippets_load_and_judge_the_student_as_the_run_did(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "own", result())))
    assert "# in eval mode" in page.text
    assert "raw uint8 images [N, C, H, W]" in page.text
    assert "--image-size" not in page.text
    assert "views stored in the cache" in page.text
    recipe = RECIPE + "image_size = 96\n"
    page = Page(write_report(make_run(tmp_path / "given", result(), recipe=recipe)))
    assert "--data parquet:/data/birds --image-size 96" in page.text


@pytest.mark.parametrize(
    ("better", "told"),
    [(1, "1 is better and 3 worse"), (2, "2 are better and 2 worse"), (0, "none are better and 4 worse")],
)
def test_one_class_is_told_in_the_singular(tmp_path: Path, better: int, told: str) -> None:
    found = result()
    found["teacher"]["per_class"] = [0.5] * 4
    found["student"]["per_class"] = [0.6] * better + [0.4] * (4 - better)
    assert f"Of 4 classes {told}" in Page(write_report(make_run(tmp_path / "run", found))).text


EVIL = [
    "</script><script>alert(3)</script>",
    "<!-- --><img src=x onerror=alert(4)>",
    "'\"\\]}) + alert(5)",
    "\u2028 ${alert(6)}",
    'back\\"slash',
]


def test_names_in_charts_stay_names(tmp_path: Path) -> None:
    told = result(classes=EVIL, plan=None)
    told["phases"] = [{"name": name, "kind": "fit", "epochs": 2, "seconds": 1.0, "best": {}} for name in EVIL]
    events = [epoch(n, name, eval={"loss": 1.0 / n}) for name in EVIL for n in (1, 2)]
    events += [{"event": "block", "phase": "p", "name": name, "before": 0.5, "after": 0.1} for name in EVIL]
    page = Page(write_report(make_run(tmp_path / "run", told, events)))
    nothing_is_fetched(page)
    assert len(page.scripts) == 2
    assert "alert" not in page.scripts[1]
    assert page.count("script") == len(page.charts) + 2
    assert [name for *_, name in page.charts["Loss of each phase, in order"]["bands"]] == EVIL
    assert [row["name"] for row in page.charts["Solved layers, 1 of 1"]["rows"]] == EVIL
    assert page.charts["What the student takes for what"]["names"] == EVIL[:4]


def test_curves_on_validation_and_test_sets_are_told_apart(tmp_path: Path) -> None:
    both = [epoch(n, eval_on="validation" if n < 3 else "test") for n in range(1, 6)]
    chart = Page(write_report(make_run(tmp_path / "run", None, both))).charts["Accuracy"]
    assert [one["label"] for one in chart["series"]] == ["student, validation", "student, test"]
    assert [x for x, _ in points(chart, 0)] == [1, 2]
    assert [x for x, _ in points(chart, 1)] == [3, 4, 5]

    folder, told = tmp_path / "study", study()
    for name, where in (("kd-0", "validation"), ("none-0", "test")):
        make_run(folder / "runs" / name, None, [epoch(n, eval_on=where, eval={"accuracy": 0.1 * n}) for n in (1, 2, 3)])
    told["runs"].append(
        {"setting": {"method": "none", "fraction": 0.1}, "seed": 0, "out": "runs/none-0", "status": "done"}
    )
    (folder / "study.json").write_text(json.dumps(told))
    page = Page(write_report(folder))
    sections = page.text.partition("Curves of the runs on the ")[2].split("Curves of the runs on the ")
    assert ["kd (fraction 0.1)" in section for section in sections] == [True, False]
    assert [section.partition(" ")[0] for section in sections] == ["validation", "test"]
    assert "Accuracy on the test set while training" in page.text


def test_the_runs_of_a_study_share_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    runs = [make_run(folder / "runs" / f"kd-{n}", result(), [epoch(1), epoch(2)]) for n in range(2)]
    (folder / "study.json").write_text(json.dumps(study()))
    for run in runs:
        assert write_report(run).stat().st_size < 100_000
        page = Page(run / "report.html")
        assert [attrs["src"] for tag, attrs in page.tags if tag == "script" and "src" in attrs] == ["../../report.js"]
        assert len(page.scripts) == 1
        assert "script-src 'sha256-" in (run / "report.html").read_text()
        assert "which is not there: their values are listed instead" in page.text, "hidden until it is so"
    assert (folder / "report.js").read_text() == drawing()
    nothing_is_fetched(Page(write_report(folder)))
    assert drawing() in (folder / "report.html").read_text(), "the study's page is one file"

    moved = runs[0].rename(tmp_path / "moved")
    assert Page(write_report(moved)).scripts[0] == drawing()
    (folder / "report.js").write_text("/* Vega 5, of another version */")
    assert "../../report.js" in write_report(runs[1]).read_text()
    assert (folder / "report.js").read_text() == drawing()
    (folder / "report.js").write_text("the user's own")
    assert Page(write_report(runs[1])).scripts[0] == drawing()
    assert (folder / "report.js").read_text() == "the user's own"


def test_a_page_of_a_long_run_is_no_larger_than_it_must(tmp_path: Path) -> None:
    events = [epoch(n, f"stage{k}", step=n) for k in range(4) for n in range(1, 201)]
    path = write_report(make_run(tmp_path / "run", result(), events))
    assert path.stat().st_size < 1_500_000
    assert Page(path).scripts[0] == drawing()
    assert "</script" not in drawing()
    assert drawing() not in write_report(make_run(tmp_path / "begun")).read_text(), "where there is nothing to draw"


def test_what_the_legend_switches_is_there(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", result(), [epoch(n) for n in range(1, 4)])))
    keys = [attrs["data-line"] for tag, attrs in page.tags if tag == "button" and "data-line" in attrs]
    assert keys[:5] == ["s0", "level", "s0", "s1", "s2"]
    names = ("Accuracy on the validation set", "Training loss")
    assert [[one["label"] for one in page.charts[name]["series"]] for name in names] == [
        ["student, validation"],
        ["total", "task", "kd"],
    ]
    assert page.charts[names[0]]["level"] == [pytest.approx(66.7), "teacher 66.7\u00a0% (test set)"]


def test_shares_have_no_log_scale_and_a_part_that_is_all_of_a_loss_is_not_drawn(tmp_path: Path) -> None:
    events = [
        epoch(n, train={"loss": 10.0**-n, "task_loss": 10.0**-n, "kd_loss": 0.5 / n}, eval={"ece": 0.4 * 10.0**-n})
        for n in (1, 2, 3)
    ]
    page = Page(write_report(make_run(tmp_path / "run", result(), events)))
    loss, ece = page.charts["Training loss"], page.charts["ECE on the validation set"]
    assert (loss["log"], ece["log"]) == (True, False)
    assert [line["label"] for line in loss["series"]] == ["total", "kd"]


def test_a_phase_is_told_by_the_metric_that_decides(tmp_path: Path) -> None:
    told = result()
    told["phases"][0]["best"] |= {"nll": 1.5, "ece": 0.04}
    told["phases"].append({"name": "align", "kind": "solve", "best": {"before": 0.9, "after": 0.04, "sweeps": 2}})
    page = Page(write_report(make_run(tmp_path / "run", told)))
    assert "accuracy 58.0 % (epoch 5)" in page.text
    assert "NLL 1.500 (epoch 5)" not in page.text
    assert "error 90 % → 4.0 %, sweeps 2" in page.text


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), min_size=1, max_size=6), st.booleans())
def test_any_values_have_a_chart(values: list[float], loss: bool) -> None:
    line = Series("line", [[(float(n), value) for n, value in enumerate(values)]])
    chart = line_chart("Title", [line], loss=loss, level=(1.0, "level"))
    known = [value for value in values if value == value]
    if chart is None:
        assert not known
        return
    drawn = json.loads(json.dumps(chart.json(), allow_nan=False))
    assert [y for _, y in points(drawn)] == [pytest.approx(value, rel=1e-5) for value in known]
    low, high = drawn["x"]["domain"]
    assert low < high
    assert not drawn["log"] or min(known) > 0


def test_what_is_imported_late() -> None:
    code = "import sys, protege, protege.report; print({'jinja2', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
