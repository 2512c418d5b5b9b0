"""What `config.json` says of a model, checked whole before anything is built of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from ..data.labels import BY_POSITION, MOST_CLASSES
from ..errors import UserError, nearest, shown, told
from .inputs import InputSpec

CONFIG, FORMAT = "config.json", 1
EXTRA = "_extra_state"  # as modules with a `get_extra_state` name it; of any size
LARGEST = 2**28  # bytes of a config.json: a network's edits and kept channels may be many
MOST_VALUES = 2**26  # in the input of a check: several of the largest images
TASK = r"^[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?$"  # a name that `protege.tasks` looks up; no code is run to read it
OLD_PACKAGE = "understudy."  # what version 0.1 was called


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _few(shape: list[int]) -> list[int]:
    if math.prod(shape) > MOST_VALUES:
        raise ValueError(f"expected at most {MOST_VALUES:,} values")
    return shape


def _counted(arguments: dict[str, Any]) -> dict[str, Any]:
    count = arguments.get("num_classes")
    if count is not None and (type(count) is not int or not 0 <= count <= MOST_CLASSES):
        raise ValueError(f"expected a num_classes that is a whole number up to {MOST_CLASSES:,}")
    return arguments


class Check(_Strict):
    """A few `outputs` of the network on noise of this `shape`, below `values`; `scale` is the largest of all."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_few)]
    values: int = Field(ge=1)
    outputs: list[float]
    scale: float = Field(0.0, ge=0)


class Description(_Strict):
    """A model but for its weights, of whose file it has a `digest`; `beside` are the tensors in it that are none of the
    network's state; `parts` is what a network is made of that no call makes; `note`, `kind` and `call` are for
    people."""

    format: Literal[1]
    model: str | None
    arguments: Annotated[dict[str, JsonValue], AfterValidator(_counted)]
    task: Annotated[str, Field(pattern=TASK)]
    classes: list[str]
    input: dict[str, JsonValue]
    dtype: Literal["float32", "bfloat16"]
    named: bool | None = None
    memory: Literal["contiguous", "channels_last"] = "contiguous"
    structure: list[dict[str, JsonValue]] = []
    kept: dict[str, list[Annotated[int, Field(ge=0)]]] = {}
    extra: dict[Annotated[str, Field(pattern=f"{EXTRA}$")], JsonValue] = {}
    check: Check | None = None
    beside: list[str] = []
    parts: list[dict[str, JsonValue]] = []
    held_out: str = BY_POSITION
    digest: str | None = None
    note: str = ""
    kind: str = Field("", alias="class")
    call: str = ""

    @property
    def num_classes(self) -> int | None:
        count = self.arguments.get("num_classes")
        return count if isinstance(count, int) else None

    @property
    def spec(self) -> InputSpec:
        return InputSpec.from_dict(self.input)


def read_description(folder: Path) -> Description:
    """The folder's `config.json`. Raises `UserError` for the first thing in it that is not as it is written."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else told(error)
        raise UserError(f"{str(path)!r} cannot be read as JSON ({why}); save the model again.") from None
    if not isinstance(values, dict) or type(values.get("format")) is not int or values["format"] != FORMAT:
        form = shown(values.get("format") if isinstance(values, dict) else type(values).__name__)
        raise UserError(f'{str(path)!r} has format {form} where "format": {FORMAT} is expected; save it anew.')
    try:
        description = Description.model_validate(values)
        description.spec  # noqa: B018
    except ValidationError as error:
        raise UserError(f"{str(path)!r} {_wrong(error.errors(include_url=False)[0])}; save the model again.") from None
    except UserError as error:
        raise UserError(f"{str(path)!r} is not usable: {error}") from None
    if (description.model or "").startswith(OLD_PACKAGE):
        new = f"protege.{(description.model or '').removeprefix(OLD_PACKAGE)}"
        description = description.model_copy(update={"model": new})
    return description


def _wrong(first: ErrorDetails) -> str:
    key, keys = str(first["loc"][0]), [field.alias or name for name, field in Description.model_fields.items()]
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"lacks the key {key!r}"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return f"has the unknown key {shown(key)} ({nearest(key[:99], keys)})"
    message = first["msg"].removeprefix("Value error, ")
    where = "".join(f" in {shown(part)}" for part in first["loc"][1:2])
    return f"has {shown(first['input'])} as {key!r}{where}, which is not usable ({message[0].lower()}{message[1:]})"
