"""`protege train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .options import OverwriteRun, RecipeFile, Resume, RunFolder, Sets
from .recipe_options import settings_of, with_recipe_options


def command_for(words: Sequence[str]) -> Callable[..., None]:
    """The command, with the settings of a run without a teacher."""
    without = ("teacher", "method", "cache", "cache_budget")
    return with_recipe_options(command, words, method="none", without=without, also={"student": "--model"})


def command(
    recipe: RecipeFile = None,
    out: RunFolder = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    sets: Sets = None,
    **options: Any,
) -> None:
    settings = settings_of(recipe, options, sets)
    from ..run.api import train

    train(out=out, resume=resume, overwrite=overwrite, **settings)
