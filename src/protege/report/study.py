"""A study's report: headline, table, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from . import words
from .guess import learned
from .page import write_page
from .read import is_number, numbers, read_json
from .study_figures import Colours, against, curves, gains, numeric_columns, strips
from .table import (
    difference_text,
    estimate,
    is_baseline,
    say,
    setting_text,
    study_columns,
    study_guess,
    study_markdown,
    study_metrics,
    study_rows,
    teacher_samples,
    with_interval,
)


def write_study_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from study.json (and the runs' metrics.jsonl if present); return its path.

    Raises UserError when study.json is missing or damaged, or the report cannot be written.
    """
    folder = Path(folder)
    study = read_json(folder / "study.json")
    metrics = study_metrics(study)
    metric = metrics[0] if metrics else "accuracy"
    rows = study_rows(study)
    colours = Colours(study)
    runs = [run for run in study.get("runs") or [] if isinstance(run, dict)]
    return write_page(
        folder,
        "study.html",
        title=f"{study.get('name') or folder.name} · protege study",
        name=str(study.get("name") or folder.name),
        headline=headline(study, metric),
        marks=[
            words.plural(len(rows), "setting"),
            done_of(study, sum(int(numbers(row).get("runs", 0)) for row in rows)),
            f"baseline {say(study['baseline'])}"
            if isinstance(study.get("baseline"), dict) and study["baseline"]
            else "",
            study_guess(study, metric),
        ],
        teacher=teacher_text(study, metric),
        columns=study_columns(study),
        metric=words.metric_name(metric),
        points=words.is_fraction(metric),
        heads=[words.metric_name(m) + (", %" if words.is_fraction(m) else "") for m in metrics] or ["accuracy"],
        begun=any(row.get("before") for row in rows),
        judged=any(row.get("held_out") for row in rows),
        rows=[table_row(study, row, metrics) for row in rows],
        strips=strips(study, metric, colours),
        lines=[
            chart
            for chart in (
                gains(study, metric, colours),
                *(against(study, metric, column, colours) for column in numeric_columns(study)),
            )
            if chart
        ],
        unfinished=sum(not not_done(run) for run in runs) < int(study.get("planned") or len(runs)),
        curves=curves(folder, study, runs, metric, colours),
        waiting=[f"{say(r.get('setting') or {})}, seed {r.get('seed')}: {r['status']}" for r in runs if not_done(r)],
        markdown=study_markdown(study),
        plan=tomli_w.dumps(study["plan"]) if isinstance(study.get("plan"), dict) else "",
    )


def done_of(study: dict[str, Any], done: int) -> str:
    """How many runs are done, and of how many where some are not."""
    planned = int(study.get("planned") or done)
    return words.plural(done, "run") if done >= planned else f"{done} of {words.plural(planned, 'run')}"


def not_done(run: dict[str, Any]) -> bool:
    return str(run.get("status", "done")) != "done"


def headline(study: dict[str, Any], metric: str) -> str:
    """The best setting, and what the largest clear gain over the baseline is."""
    rows = [row for row in study_rows(study) if estimate(row.get("metrics"), metric)[0] is not None]
    if not rows:
        return "Unfinished: no setting of this study has been measured yet."
    sign = -1 if words.lower_is_better(metric) else 1
    best = max(rows, key=lambda row: sign * (estimate(row.get("metrics"), metric)[0] or 0.0))
    number = numbers(best).get("runs", 1)
    over = f"over {words.plural(number, 'run')}" if number > 1 else "in one run"
    value = with_interval(metric, *estimate(best.get("metrics"), metric))
    cases = len({(row.get("setting") or {}).get("case") for row in rows})
    if cases > 1:  # of other data, or with other teachers: only within a case is one better than another
        text = f"{cases} cases"
    else:
        text = f"The best {words.metric_name(metric)}, {value} {over}, comes from {say(best.get('setting') or {})}"
        text += ", the baseline" if is_baseline(study, best) else ""
        if learned({**best, "metrics": {m: estimate(best["metrics"], m)[0] for m in best["metrics"]}}) is False:
            text += f", and is no better than guessing ({study_guess(study, metric)})"
    compared = [row for row in rows if estimate(row.get("difference"), metric)[0] is not None]
    compared = [row for row in compared if not is_baseline(study, row)]
    if not compared:
        return f"{text}, {words.plural(len(rows), 'setting')} measured." if cases > 1 else text + "."
    deltas = [(estimate(row.get("difference"), metric), row) for row in compared]
    (mean, half), row = max(deltas, key=lambda pair: sign * (pair[0][0] or 0.0))
    judged = words.verdict(metric, mean or 0.0, half)
    baseline = say(study.get("baseline") or {}) or "the baseline"
    if judged == "better" and half is not None:
        gain = difference_text(metric, mean, half)
        return f"{text}; the largest gain over {baseline} is {gain}, by {say(row.get('setting') or {})}."
    if half is None:
        return f"{text}; one run of each setting cannot tell a gain over {baseline} from chance."
    than = "" if is_baseline(study, best) and cases == 1 else f" than {baseline}"
    return f"{text}; no setting is better{than} by more than its 95\u00a0% interval."


def teacher_text(study: dict[str, Any], metric: str) -> str:
    teacher = study.get("teacher")
    if not isinstance(teacher, dict):
        return ""
    value = numbers(teacher.get("metrics")).get(metric)
    parts = [str(teacher.get("spec") or "")]
    parts += [f"{words.metric_value(metric, value)} {words.metric_name(metric)}"] if value is not None else []
    parts += [f"{words.size(teacher['params'])} parameters"] if is_number(teacher.get("params")) else []
    return ", ".join(part for part in parts if part)


def table_row(study: dict[str, Any], row: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    setting, known = row.get("setting") or {}, numbers(row)
    metric = metrics[0] if metrics else "accuracy"
    mean, half = estimate(row.get("difference"), metric)
    baseline = is_baseline(study, row)
    values = [with_interval(m, *estimate(row.get("metrics"), m), unit=False) for m in metrics] or ["—"]
    return {
        "setting": [setting_text(setting.get(column)) for column in study_columns(study)],
        "baseline": baseline,
        "before": with_interval(metric, *estimate(row.get("before"), metric), unit=False),
        "held_out": with_interval(metric, *estimate(row.get("held_out"), metric), unit=False),
        "value": values[0],
        "others": values[1:],
        "difference": "baseline" if baseline else difference_text(metric, mean, half, unit=False),
        "verdict": words.verdict(metric, mean, half) if mean is not None and not baseline else "",
        "runs": words.count(known.get("runs")),
        "seconds": words.duration(known.get("seconds")),
        "seen": words.size(known.get("student_samples_seen")),
        "forwarded": teacher_samples(row, words.size),
    }
