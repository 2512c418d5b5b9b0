"""What several commands share: options, and ``--set``. Nothing here imports torch: that takes longer than to refuse."""

from __future__ import annotations

import re
import tomllib
from datetime import date, time
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option
from typer.core import TyperCommand

from ..errors import UserError
from ..program import commanded

FLAG = "[true|false]"
_PART = re.compile(r'(?:"[^"]*"|[^".])+')  # of a dotted key; a part may be quoted: variants."kd, T=0.5".lr
_KEY = re.compile(r'((?:"[^"]*"|[^"=])*)(=?)(.*)', re.DOTALL)


def parse_sets(assignments: list[str] | None) -> dict[str, Any]:
    """``["lr=0.1", "phases.head.epochs=5"]`` as nested settings. Raises `UserError` where there is no ``=``."""
    settings: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, text = _KEY.fullmatch(assignment).groups()  # type: ignore[union-attr]
        if not equals or not key:
            raise UserError(f"--set {assignment!r} has no key and value; expected KEY=VALUE, such as --set lr=0.05.")
        *parents, last = [part.strip().strip('"') for part in _PART.findall(key)] or [""]
        table = settings
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {assignment!r} contradicts another --set; expected one value for each key.")
        table[last] = _value(text)
    return settings


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):  # no TOML, or a number of thousands of digits
        return text
    return text if isinstance(value, date | time) else value  # a folder may be called by a day


RecipeFile = Annotated[Path | None, Argument(help="a TOML file with any of the options; options win over it")]
Sets = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="override one key of the recipe")]
RunFolder = Annotated[Path | None, Option(help="folder of this run")]
Resume = Annotated[bool, Option("--resume", help="go on with the run in --out")]
OverwriteRun = Annotated[bool, Option("--overwrite", help="start anew in --out, replacing the run in it")]
Overwrite = Annotated[bool, Option("--overwrite", help="replace what is in --out")]
Trust = Annotated[bool, Option("--trust", help="run the Python that the folder of a model names to build it")]
ModelSpec = Annotated[str, Option(help="model spec, a model's folder or a run's student folder")]
DataSpec = Annotated[str, Option(help="data spec")]
ImageSize = Annotated[int | None, Option(help="side images are brought to, as in distill")]
Classes = Annotated[str | None, Option(help="a file with the names of a network's outputs, one a line")]
SkipBad = Annotated[int, Option(help="so many damaged files of the data may be left out")]
Precision = Annotated[str, Option(help="auto, bf16 or fp32")]


class Command(TyperCommand):
    """A command, for which protege is the program; the option of a boolean setting may stand alone, for true."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        alone = {option for p in self.params if p.metavar == FLAG for option in p.opts}
        words = ("true", "false", "yes", "no", "on", "off", "1", "0")
        whole: list[str] = []
        for word, following in zip_longest(args, args[1:]):
            whole += [word, "true"] if word in alone and str(following).lower() not in words else [word]
        return super().parse_args(ctx, whole)

    def invoke(self, ctx: Any) -> Any:
        with commanded():
            return super().invoke(ctx)
