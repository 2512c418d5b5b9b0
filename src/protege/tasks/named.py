"""Tasks by name: those of this package, and ``package.module:name`` of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import UserError, nearest, shown
from ..lookup import GivenInPython, find_callable, place_of, refuse_unknown, source_digest, split_query, typed
from .classification import Classification
from .embeddings import Embeddings
from .language import Language
from .segmentation import Segmentation
from .task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Segmentation(), Language(), Embeddings())}
_given = GivenInPython("task")


def find_task(name: str) -> Task:
    """The task of a name, or what ``package.module:name?argument=value`` makes, a class derived from `Task` or a
    function. Raises `UserError` where there is none."""
    if name in TASKS:
        return TASKS[name]
    place, arguments = split_query(name, "task")
    value = _given.find(name) or find_callable(place, "task", "makes a task", f", or use {', '.join(TASKS)}")
    return _made(value, name, arguments)


def shipped_task(name: str) -> Task | None:
    """The task that a model says it has learned; None for ``package.module:name``, of which no code is run as a folder
    may say so. Raises `UserError` for what is neither."""
    if name not in TASKS and ":" not in name:
        raise UserError(
            f"the model's task {shown(name)} is unknown; expected one of {', '.join(TASKS)}: change task=…."
        )
    return TASKS.get(name)


def task_name(task: Any) -> str:
    """The name under which `find_task` finds a task: one of `TASKS`, ``package.module:name``, or that of an object
    given in Python. Raises `ValueError` for what is none of these."""
    for name, known in TASKS.items():
        if task is known or task is type(known):
            return name
    if isinstance(task, Task) or callable(task):
        return _given.name(task, place_of(task) if callable(task) else None)
    if isinstance(task, str) and (task in TASKS or ":" in task):
        return task
    hint = nearest(str(task), TASKS, " ").strip()
    message = f"input should be {', '.join(map(repr, TASKS))} or package.module:name"
    raise ValueError(f"{message} ({hint})" if hint else message)


def task_digest(task: Task) -> str:
    """What tells a task from others: its name, or of one's own its code and attributes; networks tell themselves."""
    if type(task) is type(TASKS.get(task.name)):
        return task.name
    values = {key: value for key, value in vars(task).items() if not isinstance(value, nn.Module)}
    return source_digest([type(task), values])


def name_in_folders(task: Task, spec: str | None) -> str:
    """What a student's folder says that it has learned: a task of this package, or the place of one's own; of one that
    no module has, the kind that it derives from."""
    if task.name in TASKS:
        return task.name
    if spec and not spec.startswith(GivenInPython.begins):
        return spec.partition("?")[0]
    names = (getattr(kind, "name", None) for kind in type(task).__mro__)
    return next((name for name in names if name in TASKS), task.of)


def is_own(name: str) -> bool:
    """Whether the task is not one of this package."""
    return name not in TASKS


def _made(value: Any, name: str, arguments: Mapping[str, Any]) -> Task:
    if not isinstance(value, Task):
        refuse_unknown(value, arguments, f"task {name!r}")
        try:
            value = value(**arguments)
        except Exception as error:
            raise UserError(f"the task {name!r} cannot be made with {typed(error)}; correct it.") from error
    if not isinstance(value, Task):
        raise UserError(
            f"the task {name!r} makes {shown(value)}; expected a protege.tasks.Task: derive a class from that or from "
            "one of its kinds."
        )
    if not isinstance(getattr(value, "name", None), str):
        raise UserError(f"the task {name!r} has no name; expected a text: give its class a name = ….")
    return value
