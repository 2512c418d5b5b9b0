"""What reports draw for single methods: stages and their losses, solved layers, the gap, amounts of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import Page, epoch, make_run, nothing_is_fetched, points, result, said

from protege.report import write_report
from protege.report.networks import block, extent

NAMES = ["layer1", "<i>layer2</i>", "layer3"]


def plan(names: list[str] = NAMES) -> list[dict[str, Any]]:
    rows = [
        {
            "stage": name,
            "teacher": f"deep.{name}",
            "student_shape": [8 * 2**n, 32 >> n, 32 >> n],
            "teacher_shape": [16 * 2**n, 32 >> n, 32 >> n],
            "parameters": 1230 * (n + 1),
            "adapter": n > 0,
        }
        for n, name in enumerate(names)
    ]
    head = dict.fromkeys(("teacher", "student_shape", "teacher_shape"))
    return [*rows, {"stage": "head", **head, "parameters": 90, "adapter": False}]


def stagewise() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A finished run in stages, of losses that lie far apart, with a joint end."""
    events, phases = [], []
    for n, name in enumerate([*NAMES, "head"]):
        for e in (1, 2, 3, 4):
            seen = {"eval": {"loss": 10.0**-n * (1.5 + abs(e - 3))}} if e > 1 else {"eval": None}
            events.append(epoch(e, name, train={"loss": 10.0**-n / e}, **seen))
        phases.append({"name": name, "kind": "fit", "epochs": 4, "seconds": 2.5 + n, "best": {"epoch": 3}})
        phases[-1]["best"]["loss"] = 10.0**-n * 1.5
    events += [epoch(e, "finetune") for e in (1, 2)]
    best = {"epoch": 2, "accuracy": 0.2}
    phases.append({"name": "finetune", "kind": "fit", "epochs": 2, "seconds": 1.0, "best": best})
    return result(method="skd", plan=plan(), phases=phases), events


def titles(page: Page) -> list[str]:
    return [str(attrs.get("aria-label")).partition(":")[0] for tag, attrs in page.tags if "aria-label" in attrs]


def test_stages_are_drawn_and_their_losses_stand_in_order(tmp_path: Path) -> None:
    told, events = stagewise()
    page = Page(write_report(make_run(tmp_path / "run", told, events)))
    nothing_is_fetched(page)
    assert page.count("figure", "networks") == 1
    assert page.count("div", "stage") == 2 * 4
    assert page.count("span", "solid") == 2 * 4
    for shown in ("deep.layer1", "deep.<i>layer2</i>", "32×16×16", "16×16×16", "1.23 k parameters", "then logits"):
        assert shown in page.text, shown
    assert page.text.count("1×1 adapter") == 2
    assert page.count("i", "layer") == 0, "names are text"
    assert titles(page).count("Loss of each phase, in order") == 1
    assert "Loss in layer1" not in page.text, "what the ordered chart draws is not drawn again"
    assert "Loss in finetune" in page.text, "but a sum of losses has its parts"
    ordered = page.charts["Loss of each phase, in order"]
    kept = [text for text in said(ordered) if "is kept" in text]
    assert kept[:2] == ["layer1: epoch 3 is kept, loss 1.500", "<i>layer2</i>: epoch 3 is kept, loss 0.150"]
    assert len(kept) == 5
    labels = [label.replace("\u00a0", " ") for _, label in ordered["x"]["ticks"]]
    assert labels == ["2.5 s", "3.5 s", "4.5 s", "5.5 s", "1.0 s"]
    assert [name for *_, name in ordered["bands"]] == [*NAMES, "head", "finetune"]
    assert "Log scale" in page.text
    assert "Accuracy on the validation set" in page.text


def test_a_metric_takes_the_room_of_the_phases_that_measure_it(tmp_path: Path) -> None:
    told, events = stagewise()
    page = Page(write_report(make_run(tmp_path / "run", told, events)))
    chart = page.charts["Accuracy on the validation set"]
    assert points(chart) == [(1, 10), (2, 20)]
    assert "layer1" not in json.dumps(chart)


def test_an_unfinished_run_in_stages(tmp_path: Path) -> None:
    told, events = stagewise()
    start = {"event": "start", **{k: told[k] for k in ("method", "plan", "teacher")}}
    start["phases"] = [{"name": p["name"], "kind": "fit", "epochs": 4} for p in told["phases"]]
    page = Page(write_report(make_run(tmp_path / "run", None, [start, *events[:6]])))
    assert "phase <i>layer2</i>" in page.headline
    assert page.count("div", "stage") == 8
    assert "Loss of each phase, in order" in titles(page)
    assert not [text for text in said(page.charts["Loss of each phase, in order"]) if "is kept" in text]


@pytest.mark.parametrize(
    ("method", "said", "silent", "adapters"),
    [
        ("simultaneous", "MSE", 0, 2),
        ("fitnets", "MSE", 2, 1),
        ("at", "attention", 0, 0),
        ("fsp", "flow", 0, 2),
        ("my.own:method", "paired", 0, 0),
    ],
)
def test_what_each_method_compares(tmp_path: Path, method: str, said: str, silent: int, adapters: int) -> None:
    page = Page(write_report(make_run(tmp_path / "run", result(method=method, plan=plan()))))
    assert said in page.text
    assert page.text.count("not compared") == silent
    assert page.count("div", "idle") == silent + (method != "fitnets"), "where labels teach, nothing is compared"
    assert page.text.count("1×1 adapter") == adapters
    assert "{" not in page.text.partition("Stage by stage")[2].partition("Phases")[0]


@pytest.mark.parametrize(
    "odd",
    [[], None, "layers", [{"student": "conv1", "teacher": "conv1"}], plan([]), [*plan(), {"student": "conv1"}]],
)
def test_plans_of_other_kinds_are_no_stages(tmp_path: Path, odd: Any) -> None:
    page = Page(write_report(make_run(tmp_path / "run", result(plan=odd))))
    assert page.count("figure", "networks") == 0


def test_many_stages_and_missing_figures(tmp_path: Path) -> None:
    rows = plan([f"stages.{n}" for n in range(4)] * 3)
    rows[0].update(student_shape=None, teacher_shape=["?"], parameters=None, adapter=None)
    page = Page(write_report(make_run(tmp_path / "run", result(method="skd", plan=rows, data={}))))
    assert page.count("figure", "tall") == 1
    assert page.count("div", "stage") == 2 * 13
    assert "None" not in page.text


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 4096), min_size=1, max_size=4))
def test_a_block_fits_its_frame(shape: list[int]) -> None:
    size = extent(shape)
    assert size is not None
    drawn = block("x", shape, [], size)
    assert 4 <= float(drawn.width) <= 46
    assert 4 <= float(drawn.height) <= 44
    assert drawn.facts == ["×".join(map(str, shape))]


def blocks(sweep: int | None = None, **errors: tuple[float, float]) -> list[dict[str, Any]]:
    extra = {} if sweep is None else {"sweep": sweep}
    return [
        {"event": "block", "phase": "align", "name": name, "before": b, "after": a, "ridge": 0.01, **extra}
        for name, (b, a) in errors.items()
    ]


def solved(tmp_path: Path, records: list[dict[str, Any]], before: float = 0.8, after: float = 0.04) -> Page:
    values = {"before": before, "after": after, "sweeps": 1, "left": {"gru": "not <i>linear</i>"}}
    events = [*records, {"event": "solve", "phase": "align", "blocks": len(records), "values": values}]
    phases = [{"name": "align", "kind": "solve", "epochs": 0, "seconds": 0.5, "best": values}]
    return Page(write_report(make_run(tmp_path / "run", result(method="fskd", phases=phases), events)))


def bars(page: Page) -> list[dict[str, Any]]:
    """The rows of the charts of solved layers."""
    return [row for title, c in page.charts.items() if title.startswith("Solved") for row in c["rows"]]


def test_solved_layers_are_bars_in_order(tmp_path: Path) -> None:
    page = solved(tmp_path, blocks(**{"conv1": (0.0, 0.0), "<b>conv2</b>": (0.5, 0.1), "fc": (0.4, 0.41)}))
    nothing_is_fetched(page)
    assert "Left as they are: gru (not <i>linear</i>)." in page.text
    drawn = [(row["name"], *(v for v, _ in row["bars"]), row["text"].replace("\u00a0", " ")) for row in bars(page)]
    assert drawn == [
        ("the outputs", 0.8, 0.04, "80 % → 4.0 %"),
        ("conv1", 0, 0, "0 % → 0 %"),
        ("<b>conv2</b>", 0.5, 0.1, "50 % → 10 %"),
        ("fc", 0.4, 0.41, "40 % → 41 %"),
    ]
    for shown in ("goes from 40 % to 10 %", "sweeps 1"):
        assert shown in page.text, shown
    assert [row["name"] for row in bars(page) if row["bars"][1][1] == "bad"] == ["fc"]
    assert "Solved blocks" not in page.text, "numbers are told once"


def test_sweeps_and_layers_far_off(tmp_path: Path) -> None:
    many = {f"layer{n}": (0.2, 0.1) for n in range(58)}
    first, last = blocks(1, off=(90.0, 3.0), **many), blocks(2, off=(5.0, 0.5), **dict.fromkeys(many, (0.09, 0.05)))
    page = solved(tmp_path, [*first, *last])
    assert [row["name"] for row in bars(page)] == ["the outputs", "off", *many]
    ends = [chart["ends"] for title, chart in page.charts.items() if title.startswith("Solved")]
    assert ends == 2 * [[0, pytest.approx(0.6)]], "one bad layer does not make all others invisible"
    assert bars(page)[1]["text"].replace("\u00a0", " ") == "9000 % → 50 %"
    assert bars(page)[2]["text"].replace("\u00a0", " ") == "20 % → 5.0 %"
    assert "in 2 sweeps" in page.text


@pytest.mark.parametrize("static", [True, False])
def test_the_gap_over_time(tmp_path: Path, static: bool) -> None:
    def standing(e: int) -> dict[str, float]:
        told = {"loss": 3 / e, "gap_loss": 1 / e, "student_kd_loss": 1 / e, "dynamic_kd_loss": 1 / e}
        told |= {"student_accuracy": 0.1 * e, "student_nll": 2 / e}
        told |= {"dynamic_accuracy": 0.1 * e + 0.05, "dynamic_nll": 1.8 / e}
        return told | ({"static_accuracy": 0.9, "static_nll": 0.2} if static else {})

    events = [epoch(e, "gpd", train=standing(e)) for e in range(1, 6)]
    page = Page(write_report(make_run(tmp_path / "run", result(method="gpd"), events)))
    assert "The gap in accuracy" in page.text
    assert "At the end the dynamic teacher is 5.0 points ahead of the student." in page.text
    assert "dynamic teacher is 0.040 ahead of the student" in page.text
    assert ("static teacher 66.7 % (test set)" in page.text) == (not static)
    assert "Gap to the student" not in page.text, "a loss is no gap"
    assert "Dynamic accuracy, training" not in page.text, "nothing is drawn twice"
    alone = Page(write_report(make_run(tmp_path / "scratch", result(method="gpd", teacher=None), events)))
    assert "The gap in NLL" in alone.text


def test_a_study_over_amounts_of_data(tmp_path: Path) -> None:
    rows = [
        {
            "setting": {"variant": variant, "samples": samples},
            "runs": 3,
            "metrics": {"accuracy": {"mean": 0.5, "interval95": 0.01, "values": [0.5]}},
        }
        for variant in ("none", "fskd & <b>ft</b>")
        for samples in (50, 100, 200)
    ]
    study = {"columns": ["variant", "samples"], "rows": rows, "baseline": {"variant": "none"}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = Page(write_report(tmp_path))
    nothing_is_fetched(page)
    assert "Accuracy against samples" in page.text
    x = page.charts["Accuracy against samples"]["x"]
    assert (x["title"], x["log"], x["domain"]) == ("samples (log scale)", True, [50, 200])
    assert "fskd & <b>ft</b>" in page.text
    assert "variant none" not in page.text, "a variant is called by its name"


def test_a_study_over_cases_shows_what_each_setting_gains(tmp_path: Path) -> None:
    def row(case: str, variant: str, gain: float) -> dict[str, Any]:
        teacher = {
            "spec": f"prepared:{case}",
            "params": 10,
            "metrics": {"accuracy": {"a": 0.9, "b": 0.7}.get(case, 0.5)},
        }
        return {
            "setting": {"case": case, "variant": variant},
            "runs": 3,
            "metrics": {"accuracy": {"mean": 0.5 + gain, "interval95": 0.01, "values": [0.5 + gain]}},
            "difference": {"accuracy": {"mean": gain, "interval95": 0.004}} if gain else None,
            "teacher": teacher,
        }

    gains = {"none": 0.0, "ls": 0.02, "sim": 0.03, "kd": 0.25}
    rows = [row(case, variant, gain) for case in "abc" for variant, gain in gains.items()]
    study = {"columns": ["case", "variant"], "rows": rows, "baseline": {"variant": "none"}, "teacher": None}
    study["plan"] = {"name": "cases", "recipe": {"epochs": 3}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = Page(write_report(tmp_path))
    nothing_is_fetched(page)
    assert "Gain over none, points of accuracy" in page.text
    assert "3 cases; the largest gain over none is +25.00 ± 0.40 points, by kd" in page.text.replace("\u00a0", " ")
    assert "epochs = 3" in page.text, "what was run"
    assert "Off this scale: kd, +25.00 points." in page.text
    chart = page.charts["Gain over none, points of accuracy"]
    sim = [one["label"] for one in chart["series"]].index("sim")
    gains = [(row["t"], row[f"s{sim}"], row[f"h{sim}"]) for row in chart["rows"] if f"s{sim}" in row]
    assert gains == [(case, pytest.approx(3), pytest.approx(0.4)) for case in "abc"]
    assert "teacher 90.0 %" in page.text
    assert "teacher 70.0 %" in page.text, "each panel has its own case's teacher"
