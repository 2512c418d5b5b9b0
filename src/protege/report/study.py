"""A study's report: headline, table, figures."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from .. import words
from .page import write_page
from .read import is_number, read_json, table
from .study_figures import against, colours_of, curves, gains, numeric_columns, strips
from .table import Study, grid, metrics_of, say, study_markdown


def write_study_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from study.json (and the runs' metrics.jsonl if present); return its path.

    Raises UserError when study.json is missing or damaged, or the report cannot be written.
    """
    folder = Path(folder)
    study = Study(read_json(folder / "study.json"))
    colours, record = colours_of(study), study.record
    waiting = [run for run in study.runs if str(run.get("status", "done")) != "done"]
    planned = int(record.get("planned") or 0)
    lines = [gains(study, colours), *(against(study, column, colours) for column in numeric_columns(study))]
    name = str(record.get("name") or folder.name)
    return write_page(
        folder,
        "study.html",
        title=f"{name} · protege study",
        name=name,
        study=study,
        headline=headline(study),
        done=sum(int(row.number("runs") or 0) for row in study.rows),
        planned=planned,
        teacher=teacher_text(study),
        baseline=say(study.baseline),
        table=grid(study, in_full=False),
        strips=strips(study, colours),
        lines=[chart for chart in lines if chart],
        unfinished=len(study.runs) - len(waiting) < (planned or len(study.runs)),
        curves=curves(folder, study, colours),
        waiting=[f"{say(r.get('setting') or {})}, seed {r.get('seed')}: {r['status']}" for r in waiting],
        markdown=study_markdown(record),
        plan=tomli_w.dumps(table(record.get("plan"))),
    )


def headline(study: Study) -> str:
    """The best setting, and what the largest clear gain over the baseline is."""
    metric, sign = study.metric, -1 if words.lower_is_better(study.metric) else 1
    known = [(row, value) for row in study.rows if (value := row.estimate(metric))]
    if not known:
        return "Unfinished: no setting of this study has been measured yet."
    best, value = max(known, key=lambda pair: sign * pair[1].mean)
    runs = best.number("runs") or 1
    cases = len({row.setting.get("case") for row, _ in known})
    if cases > 1:  # of other data, or with other teachers: only within a case is one better than another
        text = f"{cases} cases"
    else:
        over = f"over {words.plural(runs, 'run')}" if runs > 1 else "in one run"
        text = f"The best {words.metric_name(metric)}, {value.text()} {over}, comes from {say(best.setting)}"
        text += ", the baseline" if study.is_baseline(best) else ""
        if best.record.get("learned") is False:
            text += f", and is no better than guessing ({study.guess()})"
    rivals = [row for row, _ in known if not study.is_baseline(row)]
    compared = [(row, delta) for row in rivals if (delta := row.estimate(metric, "difference"))]
    if not compared:
        return f"{text}, {words.plural(len(known), 'setting')} measured." if cases > 1 else text + "."
    row, delta = max(compared, key=lambda pair: sign * pair[1].mean)
    baseline = say(study.baseline) or "the baseline"
    if delta.half is None:
        return f"{text}; one run of each setting cannot tell a gain over {baseline} from chance."
    if delta.verdict == "better":
        return f"{text}; the largest gain over {baseline} is {delta.difference()}, by {say(row.setting)}."
    than = "" if study.is_baseline(best) and cases == 1 else f" than {baseline}"
    return f"{text}; no setting is better{than} by more than its 95\u00a0% interval."


def teacher_text(study: Study) -> str:
    teacher, metric = table(study.record.get("teacher")), study.metric
    value = metrics_of(teacher).get(metric)
    parts = [str(teacher.get("spec") or "")]
    parts += [f"{words.metric_value(metric, value)} {words.metric_name(metric)}"] if value is not None else []
    parts += [f"{words.size(teacher['params'])} parameters"] if is_number(teacher.get("params")) else []
    return ", ".join(part for part in parts if part)
