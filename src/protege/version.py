"""The version: of the installed distribution, and of a checkout that is not installed by its `pyproject.toml`."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _version() -> str:
    try:
        return version("protege")
    except PackageNotFoundError:
        described = Path(__file__).parents[2] / "pyproject.toml"
        return (
            tomllib.loads(described.read_text(encoding="utf-8"))["project"]["version"]
            if described.exists()
            else "unknown"
        )


__version__ = _version()
