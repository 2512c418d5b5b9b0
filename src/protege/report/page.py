"""Rendering a page: templates beside the code, all escaped, nothing fetched, the file replaced atomically."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from protege.errors import UserError, full_disk
from protege.report import words

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
    """Write a file in one step: a reader sees the old report or the new one, never half of it."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        try:
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        remedy = "free some room on its disk" if full_disk(error) else "make its folder writable"
        raise UserError(
            f"{path} cannot be written ({error.strerror}): {remedy}, then run 'protege report' again"
        ) from error
    return path
