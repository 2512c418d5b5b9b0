"""Rendering a page: templates beside the code, all escaped, nothing fetched, the file replaced atomically."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from protege.errors import UserError, full_disk
from protege.ownership import is_report
from protege.report import words
from protege.writing import write_text

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **content: Any) -> str:
    """Fill a template; the page's own policy forbids all requests, and all scripts but the copy button's."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    script = (TEMPLATES / "copy.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=Markup(script), script_hash=digest, **content)


def write_page(path: Path, text: str) -> Path:
    """Write a report in one step: a reader sees the old one or the new one, never half of it. Raises `UserError` where
    a page that is no report of ours would be replaced."""
    if path.exists() and not is_report(path):
        raise UserError(f"{path} was made otherwise and is kept: move it away, then run 'protege report' again")
    try:
        write_text(path, text)
    except OSError as error:
        remedy = "free some room on its disk" if full_disk(error) else "make its folder writable"
        raise UserError(
            f"{path} cannot be written ({error.strerror}): {remedy}, then run 'protege report' again"
        ) from error
    return path
