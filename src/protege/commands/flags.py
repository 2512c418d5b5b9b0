"""Sentences of the library in the command line's words: the argument ``lr=0.1`` is its option ``--lr 0.1``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

_ARGUMENT = re.compile(r"""(?<![^\s(])(?<!--set )([a-z_]+(?:\.[\w.-]+)?)=(…|'[^']*'|"[^"]*"|\w(?:[\w.-]*\w)?)""")
_ELSEWHERE = {"changes": "--set"}  # arguments that the command line has by another name


def in_flags(text: str, options: Iterable[Any]) -> str:
    """``text`` with ``name=value`` as one of a command's ``options`` (click's) where it has one of that name."""
    known = {option.name: option.opts[0] for option in options if option.opts[0].startswith("--")} | _ELSEWHERE

    def in_flag(argument: re.Match[str]) -> str:
        name, value = argument.groups()
        if "." in name:
            return f"--set {name}={'VALUE' if value == '…' else value}" if "sets" in known else argument[0]
        if name not in known:
            return argument[0]
        word = value[1:-1] if re.fullmatch(r"(['\"])[\w.-]+\1", value) else value
        return known[name] if value in ("…", "True") else f"{known[name]} {word}"

    return _ARGUMENT.sub(in_flag, text)


class InFlags(logging.Formatter):
    """Log records in the words of the command that runs."""

    def __init__(self, options: Iterable[Any]) -> None:
        super().__init__("%(message)s")
        self.options = list(options)

    def format(self, record: logging.LogRecord) -> str:
        return in_flags(super().format(record), self.options)
