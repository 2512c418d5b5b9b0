"""The front door in Python: `distill`, `preview` and `train`. The commands call these and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..methods import Method, Setup
from ..settings import public
from ..torch_utils import same_numbers
from ..training.phase import Phase
from .arguments import separate
from .choice import chosen
from .evaluate import evaluate
from .prepare import prepare, preview_of
from .recipe import labels_only, make_recipe
from .run import Result, perform

__all__ = ["Result", "distill", "evaluate", "preview", "train"]


@public
def distill(
    teacher: str | nn.Module | None = None,
    student: str | nn.Module | None = None,
    data: Any = None,
    method: str | Method | Callable[[Setup], Sequence[Phase]] | None = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Result:
    """Teach ``student`` to take over ``teacher``'s role, and leave a run folder.

    ``teacher`` and ``student`` are model specs (``zoo:resnet20``, a folder with ``config.json``,
    ``package.module:factory``), a `Model`, or any ``nn.Module``; ``data`` is a data spec (``digits``,
    ``parquet:PATH``, ``images:PATH``) or a map-style ``Dataset`` (or a pair of train and test,
    or a dict of splits). ``recipe`` is a TOML file with any of the keys; arguments win over it. All other settings are
    those of `protege.run.recipe.Recipe` and of the method.

        import protege
        result = protege.distill("runs/teacher/student", "zoo:resnet20", "images:photos", out="runs/small")
        result.student.save("small")

    A student given as a module is trained in place. Raises `UserError` for bad input, before anything is trained or
    written.
    """
    given = {"teacher": teacher, "student": student, "data": data, "method": method, **settings}
    return perform(given, out, recipe=recipe, resume=resume, overwrite=overwrite)


@public
@same_numbers()
def preview(
    teacher: str | nn.Module | None = None,
    student: str | nn.Module | None = None,
    data: Any = None,
    method: str | Method | Callable[[Setup], Sequence[Phase]] | None = None,
    *,
    recipe: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What `distill` would do with the same arguments, checked like it; nothing is trained or written.

    ``phases`` lists name, kind and settings of each phase; ``plan`` is how the method will treat the two networks (the
    stages it paired, say), a list of dicts with the same keys; ``disk`` how many bytes it takes at most.
    """
    given = {"teacher": teacher, "student": student, "data": data, "method": method, **settings}
    values, objects = separate(given, recipe)
    return preview_of(prepare(make_recipe(chosen(values, objects)[0]), objects, Path()))


@public
def train(
    student: str | nn.Module | None = None,
    data: Any = None,
    out: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Result:
    """Train ``student`` on labels only: how teachers are made. Like `distill` with method ``none``."""
    values, objects = separate({"student": student, "data": data, **settings}, recipe)
    return perform(labels_only(values | objects), out, resume=resume, overwrite=overwrite)
