"""`protege train`."""

from __future__ import annotations

from typing import Any

from ..run.api import train
from .options import OverwriteRun, RecipeFile, Resume, RunFolder, Sets
from .recipe import settings_of, with_recipe_options


@with_recipe_options(["none"], without=["teacher", "method", "cache", "cache_budget"], also={"student": "--model"})
def command(
    recipe: RecipeFile = None,
    out: RunFolder = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    sets: Sets = None,
    **options: Any,
) -> None:
    train(out=out, resume=resume, overwrite=overwrite, **settings_of(recipe, options, sets))
