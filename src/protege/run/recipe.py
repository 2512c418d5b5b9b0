"""A recipe: every setting of a run, typed. Keys are the command line's options and the Python function's arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, create_model, model_validator

from ..data import MOST_PIXELS
from ..data.classes import read_classes
from ..errors import UserError, nearest, shown
from ..methods import METHODS, Method, MethodSettings, find_method, is_method, offered
from ..methods.targets import TARGETS
from ..settings import Settings, number_or
from ..synonyms import METHOD_NAMES, SETTING_NAMES, VALUE_NAMES
from ..tasks import task_name
from ..training import FitSettings

BYTES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
BYTES |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


MEMORY = "4GiB"  # of decoded images, unless more is at hand


def _size(value: Any) -> str:
    """A size such as ``4GiB`` or ``500 MB``, kept as text without the space; `size_in_bytes` reads it."""
    text = str(value).strip()
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-zA-Z]*)", text)
    if not match or match[2].lower() not in BYTES:
        raise ValueError("expected a size such as 4GiB or 500MB")
    return match[1] + match[2]


def size_in_bytes(text: str) -> int:
    """Bytes in a size such as ``4GiB``."""
    match = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", text)
    assert match
    return int(float(match[1]) * BYTES[match[2].lower()])


SECONDS = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600}


def seconds_in(value: Any) -> float:
    """Seconds in a time such as ``90``, ``90s``, ``10m`` or ``1.5h``. Raises ValueError for what is none."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)", str(value).strip().lower())
    if isinstance(value, bool) or not match or match[2] not in SECONDS or not float(match[1]):
        raise ValueError("expected a time such as 90s, 10m or 1.5h")
    return float(match[1]) * SECONDS[match[2]]


def _task(value: Any) -> Any:
    return None if value is None else task_name(value)


def _classes(value: Any) -> Any:
    """A file, or the names themselves."""
    return value if isinstance(value, str | None) else read_classes(value)


Size = Annotated[str, BeforeValidator(_size)]
Time = Annotated[float, BeforeValidator(seconds_in)]
Classes = Annotated[str | tuple[str, ...] | None, BeforeValidator(_classes)]
Views = Annotated[Annotated[int, Field(ge=1)] | Literal["all"], BeforeValidator(number_or("all", "a number from 1"))]


class Recipe(FitSettings):
    """The settings common to all methods; `recipe_type` adds those of one method."""

    teacher: str | None = Field(None, description="the big network: zoo:NAME, a run's student folder, module:factory")
    student: str = Field(description="the network that learns, named like a teacher")
    data: str = Field(description="digits, parquet:PATH, images:PATH, segmentation:PATH, text:PATH or synthetic:…")
    classes: Classes = Field(
        None, description="a file with the names of the outputs, one a line, of a network that has no names for them"
    )
    task: Annotated[str | None, BeforeValidator(_task)] = Field(
        None,
        description="what is learned: embeddings (the teacher's vectors of images), or package.module:name; "
        "default: by the data",
    )
    method: str = Field(
        "kd", description=f"how to teach: {', '.join([*METHODS, *offered()])}, auto, or package.module:name"
    )

    time: Time | None = Field(
        None, description="of method auto: how long trials and run may take together, such as 90s, 10m or 1.5h"
    )

    fraction: float | None = Field(
        None, gt=0, le=1, description="share of the training samples, of each class if the method reads labels"
    )
    samples: int | None = Field(
        None, ge=1, description="number of training samples, shared out over the classes if the method reads labels"
    )
    validation: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of them held out; default: 0.1 where a best state or patience needs it",
    )
    views: Views | None = Field(
        None, description="augmentations a sample has, replayed and remembered; 'all': a fresh one each epoch"
    )
    augment: str | None = Field(
        None,
        description="none, or parts: shift=4, crop=0.35, flip, jitter=0.4, randaugment=9, mixup=0.2, cutmix=1, "
        "package.module:transform; default: by the data",
    )
    image_size: int | None = Field(
        None,
        ge=4,
        le=MOST_PIXELS,
        description="side images are brought to (the shorter one, for segmentation); default: their own "
        "where all are alike and at most 64, else 224; masks keep theirs",
    )
    decoded_size: int | None = Field(
        None,
        ge=4,
        le=MOST_PIXELS,
        description="side of the images in memory that random crops of training images are cut from; "
        "default: that of image_size",
    )
    memory_limit: Size | None = Field(
        None,
        description="decoded images above it are streamed from disk; default: 4GiB, or half of the memory that a GPU "
        "has free, up to half of the machine's",
    )
    skip_bad: int = Field(
        0, ge=0, description="so many damaged files of the data may be left out; with it all are decoded once before"
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="processes that decode streamed images; default: as many as threads, at most 8, with a GPU 32",
    )

    trust: bool = Field(False, description="run the Python that the folder of a model names to build it")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and choice of samples")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the processor has it")
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="training steps: auto records them on a GPU and compiles them in long phases there; on compiles "
        "them always; off does neither",
    )
    deterministic: bool = Field(
        False, description="bit for bit the same numbers in each run on a GPU, too, where it is slower"
    )
    cache: str | None = Field(None, description="folder of the teacher's signals; default: by fingerprint, shared")
    cache_budget: Size = Field("4GiB", description="disk that one teacher's signals may take")
    checkpoint_seconds: float = Field(60.0, ge=0, description="time between checkpoints; 0: after every update")
    log_with: str | None = Field(None, description="a tracker that Accelerate knows, such as tensorboard")
    phases: dict[str, dict[str, Any]] = Field(default_factory=dict, description="fit settings of single phases")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.fraction is not None and self.samples is not None:
            raise ValueError("fraction and samples are both given; expected one of them: remove the other")
        for name, changes in self.phases.items():
            for key in changes:
                if key not in FitSettings.model_fields:
                    hint = nearest(key, FitSettings.model_fields, also=SETTING_NAMES)
                    raise ValueError(f"phases.{name} has the unknown key {key!r}; {hint}")
        return self


def recipe_type(name: str) -> type[Recipe]:
    """The recipe of one method: the common settings, with the method's defaults for them, and its own."""
    if not is_method(name):
        if name in TARGETS:
            raise UserError(f"the method {name!r} is unknown; it is a target: use method='kd' and target={name!r}.")
        near = nearest(name, [*METHODS, *offered(), "auto"], also=METHOD_NAMES, all_of="methods")
        raise UserError(f"the method {name!r} is unknown; {near}.")
    return _recipe_type(name, find_method(name))


@cache
def _recipe_type(name: str, method: Method) -> type[Recipe]:
    for key in method.settings.model_fields:
        if key in Recipe.model_fields and key not in MethodSettings.model_fields:
            raise UserError(
                f"the method {name!r} has a setting {key!r}, which every run has; expected another name, or "
                f"defaults={{{key!r}: …}} of its protege.methods.Method: rename it."
            )
    bases: Any = (Recipe, method.settings)
    fields: dict[str, Any] = {}
    for key, value in method.defaults.items():
        if key not in Recipe.model_fields:
            raise UserError(f"the method {name!r} has a default for {key!r}, which no run has; correct its defaults.")
        common = Recipe.model_fields[key]
        kind: Any = Annotated[(common.annotation, *common.metadata)] if common.metadata else common.annotation
        fields[key] = (kind, Field(value, description=common.description))
    return create_model(f"{name}_recipe", __base__=bases, **fields)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Validate settings. Raises `UserError` with one sentence for the first thing wrong."""
    values = {key: value for key, value in values.items() if value is not None}
    method = str(values.get("method", "kd"))
    kind = recipe_type(method)
    suits = kind.model_fields["optimizer"].default
    optimizer = values.get("optimizer", suits)
    if isinstance(optimizer, str) and optimizer != suits:  # the method's rate is one for the method's optimizer
        values = {"lr": None, **values}
    for key in values:
        if key not in kind.model_fields:
            others = [name for name, m in METHODS.items() if key in m.settings.model_fields]
            if others:
                raise UserError(
                    f"the key {key!r} belongs to method {', '.join(others)}, but the method is {method!r}; expected "
                    "settings of that method: leave it out or change method=…."
                )
            raise UserError(f"the key {key!r} is unknown here; {nearest(key, kind.model_fields, also=SETTING_NAMES)}.")
    phase = ""
    try:
        recipe = kind.model_validate(values)
        for name, changes in recipe.phases.items():
            phase = f"phases.{name}."
            FitSettings.model_validate(changes)
    except ValidationError as error:
        raise _refusal(error, phase) from None
    if find_method(method).needs_teacher and recipe.teacher is None:
        raise UserError(f"method {method!r} has no teacher; expected one: add teacher=….")
    return recipe


def checked(**values: Any) -> dict[str, Any]:
    """Values of some of a recipe's keys, as a recipe takes them. Raises `UserError` for the first that does not fit."""
    known = recipe_type("kd").model_fields
    fields: Any = {key: (known[key].rebuild_annotation(), known[key].default) for key in values}
    try:
        return create_model("some", __base__=Settings, **fields).model_validate(values).model_dump()
    except ValidationError as error:
        raise _refusal(error, "") from None


def labels_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training on labels alone; `UserError` where they name a method or a teacher."""
    for key in ("method", "teacher"):
        value = values.get(key)
        if value is not None and not (isinstance(value, str) and value == "none"):
            raise UserError(f"train with {key} = {shown(value)}; expected labels only: leave it out, or use distill.")
    return {**values, "method": "none"}


def _refusal(error: ValidationError, phase: str) -> UserError:
    """The first thing wrong, as one sentence."""
    first = error.errors()[0]
    inner = ("function-", "literal", "constrained-")  # pydantic's own names for the parts of a key's type
    where = phase + ".".join(str(part) for part in first["loc"] if not str(part).startswith(inner))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return UserError(f"{where!r} is missing; expected it as {where}=… or in the recipe.")
    if not where:
        return UserError(f"{message}.")
    message = message[0].lower() + message[1:]
    if first["type"] == "literal_error":
        values = re.findall(r"'([^']*)'", message)
        message += (
            f" ({hint})"
            if (hint := nearest(str(first["input"]), values, " ", also=VALUE_NAMES.get(where))).strip()
            else ""
        )
    return UserError(f"{where} = {shown(first['input'])} does not fit: {message}; change it with {where}=….")


def with_task_defaults(recipe: Recipe, defaults: Mapping[str, Any]) -> Recipe:
    """The recipe with a task's ``defaults`` for what neither the user set nor the method has a default for.

    An optimizer that was chosen keeps its own rate and decay.
    """
    taken = recipe.model_fields_set | set(find_method(recipe.method).defaults)
    if "optimizer" in taken:
        taken |= {"lr", "weight_decay"}
    known = set(type(recipe).model_fields) - taken
    return recipe.model_copy(update={key: value for key, value in defaults.items() if key in known})
