"""Rendering a page: templates beside the code, all escaped, nothing fetched, the file replaced atomically.

A page holds the script that draws its charts, so that it is one file that works anywhere. The runs of a study share one
copy in the study's folder; where such a page is moved away from it, it lists the values of its charts.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import words
from ..errors import UserError, full_disk
from ..files import is_report, is_study, write_text

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
SHARED = "report.js"  # the copy in a study's folder
MADE_BY = "/* Vega "  # how the script begins, by which a copy is known


@dataclass(frozen=True)
class Card:
    """A network: one large figure and what belongs to it; ``notes`` are (tone, text)."""

    role: str
    title: str
    spec: str
    label: str
    value: str
    facts: list[tuple[str, str]]
    notes: Sequence[tuple[str, str]] = ()


@cache
def drawing() -> str:
    """The script that draws charts, under the licences of what it is made of: a page is a copy of it."""
    licences, script = ((HERE / "vega" / name).read_text(encoding="utf-8").strip() for name in ("LICENSE", "vega.js"))
    return f"/*\n{licences}\n*/\n{script}"


@cache
def templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # takes as long to import as a page to write

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment


def write_page(folder: Path, template: str, **content: Any) -> Path:
    """Write ``folder/report.html`` in one step: a reader sees the old page or the new one, never half of it.

    Raises `UserError` where a page that is no report of ours would be replaced, or it cannot be written.
    """
    path = folder / "report.html"
    if path.exists() and not is_report(path):
        raise UserError(f"{path} was made otherwise and is kept: move it away, then run 'protege report' again")
    try:
        write_text(path, render(template, share_script(folder), **content))
    except OSError as error:
        remedy = "free some room on its disk" if full_disk(error) else "make its folder writable"
        raise UserError(
            f"{path} cannot be written ({error.strerror}): {remedy}, then run 'protege report' again"
        ) from error
    return path


def render(template: str, shared: str = "", **content: Any) -> str:
    """Fill a template; the page's policy forbids all requests, and all scripts but its own and the ``shared`` one."""
    script = (HERE / "templates" / "page.js").read_text(encoding="utf-8").strip()
    others = "'self' file:" if shared else of_hash(drawing())
    text = (
        templates()
        .get_template(template)
        .render(script=script, allowed=f"{of_hash(script)} {others}", shared=shared, **content)
    )
    tag = f'<script src="{shared}"></script>' if shared else f"<script>{drawing()}</script>"
    return text.replace("<!--charts-->", tag if '<figure class="chart' in text else "")


@cache
def of_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def share_script(folder: Path) -> str:
    """The way from a run to the script in the folder of its study, where it is put; "" for what is in no study, and
    where a file of the user's has that name or there is no room."""
    study = folder.resolve().parent.parent
    if not is_study(study):
        return ""
    with suppress(OSError, UnicodeDecodeError):
        path = study / SHARED
        there = path.read_text(encoding="utf-8") if path.exists() else MADE_BY
        if there != drawing() and there.startswith(MADE_BY):
            write_text(path, drawing())
            there = drawing()
        return f"../../{SHARED}" if there == drawing() else ""
    return ""
