"""What a study file says: a grid of recipes, and what they need first.

A study is a TOML file::

    name = "digits: labels alone against a teacher"
    seeds = [0, 1, 2]
    baseline = {method = "none"}        # each row is compared with the row that differs from it in this alone

    [recipe]                            # what all runs share
    teacher = "runs/teacher/student"
    student = "zoo:resnet8"
    data = "digits"

    [grid]                              # every combination is a row of the table
    method = ["none", "kd"]
    samples = [100, 200]

Where methods need settings of their own, ``[variants.NAME]`` tables take the place of a ``method`` list; the table
then has a column ``variant``. What varies together beside the methods, such as data sets each with a teacher of its
own, goes into ``[cases.NAME]`` tables and the column ``case``.

What runs need first is made once: ``[prepare.NAME]`` holds a ``command`` (train, distill or shrink) and its options.
Recipes, and tables of ``prepare`` further down, name the model that it makes as ``prepared:NAME``.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError, nearest, shown
from ..report.table import say
from .recipe import labels_only, make_recipe
from .shrinking import shrink
from .toml import merge, read_toml

PREPARED = "prepared:"
LONGEST = 200  # bytes of a folder's name: with what its log is called beside it, a file system takes 255
PREPARING = ("train", "distill", "shrink")


def _plain(name: str) -> str:
    """The name, where it can be that of a folder on any system; it becomes one."""
    if (
        re.search(r'[/\\<>:"|?*\x00-\x1f\x7f]', name)
        or name.strip(". ") != name
        or not name
        or len(name.encode()) > LONGEST
        or re.fullmatch(r"(con|prn|aux|nul|(com|lpt)\d)(\..*)?", name, re.IGNORECASE)
    ):
        raise ValueError(f"{shown(name)} cannot be the name of a folder, which is made for it")
    return name


class Study(BaseModel):
    """What a study file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field([0, 1, 2], min_length=1)
    baseline: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any]
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    prepare: dict[Annotated[str, AfterValidator(_plain)], dict[str, Any]] = Field(default_factory=dict)

    def settings(self) -> list[dict[str, Any]]:
        """One setting for each row of the table: grid keys, ``case`` and ``variant`` where there are such."""
        named = {"case": self.cases, "variant": self.variants}
        axes = {**{key: list(tables) for key, tables in named.items() if tables}, **self.grid}
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def planned(self) -> list[tuple[dict[str, Any], int]]:
        """All runs, setting and seed of each: every row with one seed before the next seed, so that a study that is
        stopped early has something to compare."""
        return [(setting, seed) for seed, setting in itertools.product(self.seeds, self.settings())]

    def made(self) -> dict[str, dict[str, Any]]:
        """What each folder of the study is made from, what is prepared for it included."""
        steps = {f"prepared/{name}": step for name, step in self.prepare.items()}
        runs = {f"runs/{slug(*run)}": self.recipe_of(*run) for run in self.planned()}

        def whole(values: dict[str, Any]) -> dict[str, Any]:
            values = {key: value for key, value in values.items() if key != "trust"}  # may be given later
            needs = {name: whole(self.prepare[name]) for name in prepared_in(values)}
            return {**values, "prepare": needs} if needs else values

        return {name: whole(values) for name, values in {**steps, **runs}.items()}

    def recipe_of(self, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The recipe of one run."""
        chosen = dict(setting)
        case, variant = chosen.pop("case", ""), chosen.pop("variant", "")
        tables = self.recipe, self.cases.get(case, {}), self.variants.get(variant, {}), chosen, {"seed": seed}
        return reduce(merge, tables)


def load_study(path: str | Path, changes: Mapping[str, Any] | None = None) -> Study:
    """Read and check a study file, every recipe in it included. Raises `UserError` for the first thing wrong."""
    values = merge(read_toml(path), changes or {})
    for key in values:
        if key not in Study.model_fields:
            raise UserError(f"the study key {key!r} is unknown; {nearest(key, Study.model_fields)}.")
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        source = "--set" if first["loc"][0] in (changes or {}) else repr(str(path))
        raise UserError(f"{where!r} in {source} does not fit ({first['msg'].lower()}); mend that key.") from None
    for name, step in study.prepare.items():
        if step.get("command") not in PREPARING:
            raise UserError(
                f"prepare.{name} has the command {step.get('command')!r}; expected one of {', '.join(PREPARING)}."
            )
        _check_step(name, options_of(step), step["command"])
        above = list(study.prepare)[: list(study.prepare).index(name)]
        for needed in prepared_in(step):
            if needed in study.prepare and needed not in above:
                raise UserError(
                    f"prepare.{name} needs prepared:{needed}, which is not made before it; expected a table above it: "
                    f"move [prepare.{needed}] up, or name another."
                )
    for name in prepared_in([study.recipe, study.grid, study.cases, study.variants, study.prepare]):
        if name not in study.prepare:
            raise UserError(f"the study names prepared:{name}, which is not made; expected a table [prepare.{name}].")
    for name, table in {"recipe": study.recipe, **_named(study)}.items():
        if "seed" in table:
            raise UserError(f"{name} has the key 'seed'; expected it as seeds = […] of the study: move it.")
    for key, axis in study.grid.items():
        if key in ("seed", "case", "variant"):
            place = "seeds = […]" if key == "seed" else f"[{key}s.NAME]"
            raise UserError(f"the grid has the key {key!r}; expected it as {place}: move it.")
        if not axis:
            raise UserError(f"grid.{key} is empty; expected a list of values: add one or leave the key out.")
    rows = study.settings()
    for setting in rows:
        make_recipe(study.recipe_of(setting, 0))
    runs = [slug(*run) for run in study.planned()]
    twice = [name for name in runs if runs.count(name) > 1]
    twice += [say(row) for n, row in enumerate(rows) if rows.index(row) < n]  # 4 and 4.0
    if twice:
        raise UserError(f"the study has two runs named {twice[0]!r}; expected different ones: remove or rename one.")
    unknown = [k for k in study.baseline if rows and k not in rows[0]]
    if unknown:
        raise UserError(f"the baseline names {unknown[0]!r}; expected one of the columns {', '.join(rows[0])}.")
    if study.baseline and not any(study.baseline.items() <= row.items() for row in rows):
        raise UserError(f"the baseline {study.baseline} is no row of the study; expected values that the grid has.")
    return study


def _named(study: Study) -> dict[str, dict[str, Any]]:
    """The tables of cases and variants, as they are called in the file."""
    kinds = {"cases": study.cases, "variants": study.variants}
    return {f"{kind}.{name}": table for kind, tables in kinds.items() for name, table in tables.items()}


def _check_step(name: str, options: Mapping[str, Any], command: str) -> None:
    """Raise for options that a table of ``prepare`` cannot have."""
    if command == "shrink":
        known = set(inspect.signature(shrink).parameters) - {"out", "overwrite", "dry_run"}
        if unknown := set(options) - known:
            key = min(unknown)
            raise UserError(f"prepare.{name} has the key {key!r}; {nearest(key, known)}.")
        return
    try:
        make_recipe(labels_only(options) if command == "train" else options)
    except UserError as error:
        raise UserError(f"prepare.{name}: {error}") from None


def options_of(step: Mapping[str, Any]) -> dict[str, Any]:
    """What a table of ``prepare`` says beside its command, in a recipe's words: train also says model for student."""
    renamed = {"model": "student"} if step["command"] == "train" else {}
    return {renamed.get(key, key): value for key, value in step.items() if key != "command"}


def prepared_in(value: Any) -> list[str]:
    """Every NAME of a ``prepared:NAME`` in nested values."""
    return [text.removeprefix(PREPARED) for text in texts_in(value) if text.startswith(PREPARED)]


def texts_in(value: Any) -> Iterator[str]:
    """Every text in nested values, keys left out."""
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for part in inner:
        yield from texts_in(part)


def slug(setting: Mapping[str, Any], seed: int) -> str:
    """The folder of a run, named by its setting and seed; of a long name the beginning, and a digest of it all."""
    parts = [f"{key}-{value}" for key, value in setting.items()] + [f"seed-{seed}"]
    name = re.sub(r"[^\w.+-]+", "-", "_".join(parts))
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.blake2b("_".join(parts).encode(), digest_size=8).hexdigest()
    return f"{name.encode()[: LONGEST - 20].decode(errors='ignore')}-{digest}"
