"""`protege distill`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from typer import Option

from ..errors import in_bytes
from .options import OverwriteRun, RecipeFile, Resume, RunFolder, Sets
from .recipe_options import settings_of, with_recipe_options


def command_for(words: Sequence[str]) -> Callable[..., None]:
    """The command, with the settings of a method from outside as options where its words name one."""
    return with_recipe_options(command, words)


def command(
    recipe: RecipeFile = None,
    out: RunFolder = None,
    resume: Resume = False,
    overwrite: OverwriteRun = False,
    dry_run: Annotated[bool, Option("--dry-run", help="print what would be done, and stop")] = False,
    sets: Sets = None,
    **options: Any,
) -> None:
    settings = settings_of(recipe, options, sets)
    from ..run.api import distill, preview

    if dry_run:
        _print(preview(**settings))
    else:
        distill(out=out, resume=resume, overwrite=overwrite, **settings)


def _print(planned: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"method {planned['method']} on {planned['samples']:,} samples")
    settings = {key.replace("_", " "): _cell(value) or "no" for key, value in planned["settings"].items()}
    print("with " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    for title, rows in (("what it will do with these networks", planned["plan"]), ("phases", planned["phases"])):
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            table = Table(*(column.replace("_", " ") for column in columns), title=title, title_justify="left")
            for row in rows:
                table.add_row(*(_cell(row.get(column)) for column in columns))
            Console(width=None if sys.stdout.isatty() else 160).print(table)
    disk = planned["disk"]
    signals = (
        f"{in_bytes(disk['signals'])} for the teacher's answers (kept for later runs), " if disk["signals"] else ""
    )
    print(f"disk: at most about {signals}{in_bytes(disk['checkpoints'])} for checkpoints")


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else ""
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, float):
        value = float(f"{value:.4g}")
    return f"{value:,}" if isinstance(value, int) else str(value)
