"""The commands. Options are the recipe's keys; each command parses, calls the Python function, and prints."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from ..errors import UserError, full_disk, in_bytes, nearest, out_of_memory, told
from ..methods import METHODS
from ..methods.method import MethodSettings
from ..models.trust import commanded
from ..run.recipe import Recipe, merge, parse_sets, read_toml
from ..synonyms import COMMAND_NAMES, SETTING_NAMES
from ..training.progress import console
from ..version import __version__
from .flags import InFlags, in_flags
from .shrink import Trust, export_command, shrink_command

app = typer.Typer(
    help="Make a small neural network take over a big one's role, with the data you really have.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"protege {__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


RecipeFile = Annotated[Path | None, typer.Argument(help="a TOML file with any of the options; options win over it")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one key of the recipe")]
Out = Annotated[Path | None, typer.Option(help="folder of this run")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --out")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="start anew in --out, replacing the run in it")]


def _option(name: str, field: Any, methods: bool, *names: str) -> inspect.Parameter:
    usual = [] if field.default in (None, PydanticUndefined) else [str(field.default)]
    own = {method: found.defaults[name] for method, found in METHODS.items() if methods and name in found.defaults}
    told = "; ".join([*usual, *(f"{method}: {value}" for method, value in own.items())])
    default = f" [default: {told}]" if told else ""
    metavar = "[true|false]" if field.annotation is bool else "VALUE"
    option = typer.Option(
        *(names or (f"--{name.replace('_', '-')}",)), metavar=metavar, help=f"{field.description}{default}"
    )
    kind = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


class _RecipeCommand(TyperCommand):
    """A command with the recipe's keys: the option of a boolean one may stand alone, for true."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        alone = {option for p in self.params if p.metavar == "[true|false]" for option in p.opts}
        words = ("true", "false", "yes", "no", "on", "off", "1", "0")
        whole: list[str] = []
        for word, following in zip_longest(args, args[1:]):
            whole += [word, "true"] if word in alone and str(following).lower() not in words else [word]
        return super().parse_args(ctx, whole)


def _with_recipe_options(methods: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each key of the recipe, as text: the recipe itself parses and judges it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {name: field for name, field in Recipe.model_fields.items() if name != "phases"}
        kinds = [m.settings for m in METHODS.values()] if methods else [MethodSettings]
        for kind in kinds:
            fields |= kind.model_fields
        if not methods:
            fields = {k: f for k, f in fields.items() if k not in ("teacher", "method", "cache", "cache_budget")}
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
        names = {"student": ("--student", "--model")} if not methods else {}
        extra = [_option(name, field, methods, *names.get(name, ())) for name, field in fields.items()]
        command.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *extra]}
        return command

    return decorate


@app.command("distill", cls=_RecipeCommand)
@_with_recipe_options(methods=True)
def distill_command(
    recipe: RecipeFile = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, and stop")] = False,
    sets: Sets = None,
    **options: Any,
) -> None:
    """Teach a student to take over a teacher's role."""
    from ..run.api import distill, preview

    settings = _settings(recipe, options, sets)
    if dry_run:
        _print_preview(preview(**settings))
    else:
        distill(out=out, resume=resume, overwrite=overwrite, **settings)


def _print_preview(found: dict[str, Any]) -> None:
    print(f"method {found['method']} on {found['samples']:,} samples")
    told = {key.replace("_", " "): _cell(value) or "no" for key, value in found["settings"].items()}
    print("with " + ", ".join(f"{key} {value}" for key, value in told.items()))
    for title, rows in (("what it will do with these networks", found["plan"]), ("phases", found["phases"])):
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            table = Table(*(column.replace("_", " ") for column in columns), title=title, title_justify="left")
            for row in rows:
                table.add_row(*(_cell(row.get(column)) for column in columns))
            Console(width=None if sys.stdout.isatty() else 160).print(table)
    disk = found["disk"]
    signals = (
        f"{in_bytes(disk['signals'])} for the teacher's answers (kept for later runs), " if disk["signals"] else ""
    )
    print(f"disk: at most about {signals}{in_bytes(disk['checkpoints'])} for checkpoints")


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else ""
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, float):
        value = float(f"{value:.4g}")
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command("train", cls=_RecipeCommand)
@_with_recipe_options(methods=False)
def train_command(
    recipe: RecipeFile = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    sets: Sets = None,
    **options: Any,
) -> None:
    """Train a network on labels only: how teachers are made."""
    from ..run.api import train

    train(out=out, resume=resume, overwrite=overwrite, **_settings(recipe, options, sets))


def _settings(recipe: Path | None, options: dict[str, Any], sets: list[str] | None) -> dict[str, Any]:
    """Recipe, then options, then --set. A run that is resumed brings its own recipe."""
    settings = read_toml(recipe) if recipe else {}
    settings = merge(settings, {key: value for key, value in options.items() if value is not None})
    settings = merge(settings, parse_sets(sets or []))
    for action in ("out", "resume", "overwrite", "recipe"):
        if action in settings:
            raise UserError(f"the key {action!r} stands in a recipe; expected it as the option --{action} only.")
    return settings


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Option(help="model spec or a run's student folder")],
    data: Annotated[str, typer.Option(help="data spec")],
    split: Annotated[str | None, typer.Option(help="train, val, test, or all of data without splits")] = None,
    image_size: Annotated[int | None, typer.Option(help="side images are brought to")] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32")] = "auto",
    trust: Trust = False,
) -> None:
    """Measure a model on a data set; prints JSON."""
    from ..run.api import evaluate

    options = {"split": split, "image_size": image_size, "precision": precision, "trust": trust}
    print(json.dumps(evaluate(model, data, **options), indent=1))  # type: ignore[arg-type]


@app.command("diagnose")
def diagnose_command(
    teacher: Annotated[str, typer.Option(help="model spec or a run's student folder")],
    data: Annotated[str, typer.Option(help="data spec")],
    out: Annotated[Path, typer.Option(help="folder of the diagnosis")],
    student: Annotated[str | None, typer.Option(help="model spec of the student to teach")] = None,
    fraction: Annotated[float | None, typer.Option(help="share of the training samples to teach with")] = None,
    samples: Annotated[int | None, typer.Option(help="number of training samples to teach with")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="T of the distillation that is meant; default: 4 (text: 1)")
    ] = None,
    weight: Annotated[float, typer.Option(help="λ of the distillation that is meant")] = 0.9,
    image_size: Annotated[int | None, typer.Option(help="side images are brought to")] = None,
    seed: Annotated[int, typer.Option(help="of the choice of samples and a fresh student's weights")] = 0,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32")] = "auto",
    trust: Trust = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the diagnosis in --out")] = False,
) -> None:
    """Read a teacher before using it: what may go wrong, and which method and settings to take."""
    from ..run.diagnose import diagnose

    found = diagnose(
        teacher,
        data,
        student=student,
        out=out,
        fraction=fraction,
        samples=samples,
        temperature=temperature,
        weight=weight,
        seed=seed,
        precision=precision,
        overwrite=overwrite,
        trust=trust,
        image_size=image_size,
    )
    print(f"{found}\n\nReport: {out / 'report.html'}")


app.command("shrink")(shrink_command)
app.command("export")(export_command)


@app.command("study")
def study_command(
    file: Annotated[Path, typer.Argument(help="a study file (TOML)")],
    out: Annotated[Path, typer.Option(help="folder of the study")],
    jobs: Annotated[int, typer.Option(min=1, help="runs side by side, each a process of its own")] = 1,
    resume: Resume = False,
    overwrite: Overwrite = False,
    trust: Trust = False,
    sets: Sets = None,
) -> None:
    """Run a grid of runs and write one table."""
    from ..run.study import run_study

    changes = parse_sets(sets or [])
    found = run_study(file, out, jobs=jobs, resume=resume, overwrite=overwrite, trust=trust, changes=changes)
    print((out / "study.md").read_text(encoding="utf-8"))
    if any(run["status"] != "done" for run in found["runs"]):
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="folder of the demo")] = Path("runs/demo"),
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Teach a tiny network handwritten digits, ten images a class, and show what the teacher is worth."""
    from .demo import demo

    demo(out, resume=resume, overwrite=overwrite)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="a run's or a study's folder")],
) -> None:
    """Write report.html anew from what a run or study has left so far."""
    from ..report import write_report

    print(write_report(folder))


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def main() -> None:
    """Entry point: user errors are one sentence and status 2, a traceback only with --debug."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get("PROTEGE_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    rank = os.environ.get("RANK", "0")
    options = _options(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(InFlags(options))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("protege").setLevel(logging.INFO)
    try:
        with commanded():
            status = app(args=arguments, prog_name="protege", standalone_mode=False)
        if status == 130:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        console.print(_stopped(arguments), markup=False, soft_wrap=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
            sys.exit(2)
        error = out_of_memory(error, any(option.name == "batch_size" for option in options)) or error
        if full_disk(error) and not isinstance(error, UserError):
            again = "go on with --resume" if any(option.name == "resume" for option in options) else "run it again"
            error = UserError(
                f"the disk is full ({told(error)}); expected room for what is written: free some and {again}."
            )
        if isinstance(error, UserError) or hasattr(error, "format_message"):
            where = "" if rank == "0" else f" in process {rank}"  # one may meet what the others do not
            console.print(
                f"error{where}: {in_flags(_sentence(error), options)}", markup=False, soft_wrap=True, style="red"
            )
            sys.exit(2)
        text = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
        console.print(f"{text}; run again with --debug for the traceback", markup=False, soft_wrap=True, style="red")
        sys.exit(1)


def _options(arguments: list[str]) -> list[Any]:
    """The options of the command that these words call."""
    command = COMMANDS.get(next(iter(arguments), ""))
    return command.params if command else []


def _stopped(arguments: list[str]) -> str:
    """What to say after Ctrl-C: how to go on, where a command's --out holds something to go on with."""
    command = next(iter(arguments), "")
    named = [a.removeprefix("--out=") for a in arguments if a.startswith("--out=")]
    named += [following for option, following in pairwise(arguments) if option == "--out"]
    out = (named or ["runs/demo" if command == "demo" else ""])[-1]
    from ..files import is_run, is_study
    from .demo import is_demo

    if not out or not any(begun(Path(out)) for begun in (is_run, is_study, is_demo)):
        return "stopped"
    again = f"protege {command} --resume --out {shlex.quote(out)}"
    return f"stopped; go on with {'the same command and --resume' if command == 'study' else again}"


def _sentence(error: Any) -> str:
    """An error on one line; click's own (an unknown option, a missing one) with the remedy that they lack."""
    if isinstance(error, UserError):
        text = " ".join(str(error).splitlines())
        return text if text.endswith((".", "?")) else f"{text}."
    text = " ".join(error.format_message().split()).replace(". Did you mean", "; did you mean").rstrip(".?")
    context = getattr(error, "ctx", None)
    if text.startswith("No such option") and context:
        wrong = error.option_name
        options = [name for option in context.command.params for name in option.opts if name.startswith("--")]
        others = {other: "--" + name.replace("_", "-") for other, name in SETTING_NAMES.items()}
        others = {other: name for other, name in others.items() if name in options}
        elsewhere = [name for name, command in COMMANDS.items() if any(wrong in o.opts for o in command.params)]
        otherwise = f"it is one of {' and '.join(elsewhere)}" if elsewhere else "there is none like it"
        text = f"no such option {wrong}; {otherwise if elsewhere else nearest(wrong, options, otherwise, also=others)}"
    elif text.startswith("No such command"):
        wrong = text.split("'")[1]
        text = f"no such command {wrong!r}; {nearest(wrong, COMMANDS, also=COMMAND_NAMES, all_of='commands')}"
    return f"{text[:1].lower()}{text[1:]}; see {context.command_path if context else 'protege'} --help."
