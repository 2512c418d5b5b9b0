"""The program: which commands there are, and how whatever goes wrong is said. A command's own file is imported when
the command is called, and torch when it needs it: help, the version and most refusals come at once."""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import sys
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import UserError, full_disk, nearest, out_of_memory, told
from ..files import is_run, is_study
from ..synonyms import COMMAND_NAMES, SETTING_NAMES
from .flags import InFlags, in_flags
from .options import Command

COMMANDS = {
    "distill": "Teach a student to take over a teacher's role.",
    "train": "Train a network on labels only: how teachers are made.",
    "evaluate": "Measure a model on a data set; prints JSON.",
    "diagnose": "Read a teacher before using it: what may go wrong, and which method and settings to take.",
    "shrink": "Make a smaller copy of a network, which remembers what it kept.",
    "compress": "Make a model fit a budget, teach it on, and leave a file for a device.",
    "export": "Write a model as ONNX or int8, checked against the model itself.",
    "study": "Run a grid of runs and write one table.",
    "demo": "Teach a tiny network handwritten digits, ten images a class, and show what the teacher is worth.",
    "report": "Write report.html anew from what a run or study has left so far.",
}
_STYLE: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}


@cache
def command(name: str, words: tuple[str, ...] = ()) -> Any:
    """The command of this name, as click has it, to be called with these words; None where there is none."""
    if name not in COMMANDS:
        return None
    module = import_module(f".{name}", __package__)
    function = module.command_for(words) if hasattr(module, "command_for") else module.command
    made = typer.Typer(**_STYLE)
    made.command(name, cls=Command, help=COMMANDS[name])(function)
    return typer.main.get_command(made)


class _Commands(TyperGroup):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return command(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, words = super().resolve_command(ctx, args)
        return name, command(name, tuple(words)), words

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(asked: bool) -> None:
    if asked:
        from ..version import __version__

        print(f"protege {__version__}")
        raise typer.Exit


_app = typer.Typer(
    cls=_Commands,
    help="Make a small neural network take over a big one's role, with the data you really have.",
    no_args_is_help=True,
    **_STYLE,
)


@_app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


program: Any = typer.main.get_command(_app)


def main() -> None:
    """Entry point: user errors are one sentence and status 2, a traceback only with --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or bool(os.environ.get("PROTEGE_DEBUG"))
    options: list[Any] = []
    try:
        called = command(next(iter(arguments), ""), tuple(arguments[1:]))
        options = called.params if called else []
        handler = logging.StreamHandler()
        handler.setFormatter(InFlags(options))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("protege").setLevel(logging.INFO)
        status = program.main(args=arguments, prog_name="protege", standalone_mode=False)
        if status == 130:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        status = status if isinstance(status, int) else 0
        _end_among_others(status)
        sys.exit(status)
    except (KeyboardInterrupt, typer.Abort):
        _print(_stopped(arguments))
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
            rank = os.environ.get("RANK", "0")
            where = "" if rank == "0" else f" in process {rank}"  # one may meet what the others do not
            _print(f"error{where}: {in_flags(_sentence(error), options)}", style="red")
            sys.exit(2)
        if "RANK" in os.environ and any(sign in str(error) for sign in ("gloo", "NCCL", "Connection closed by peer")):
            _print(
                f"error: another process of this run has ended ({told(error)}); expected all of them to go on to the "
                "end: see what it said, and go on with --resume.",
                style="red",
            )
            sys.exit(1)
        text = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
        _print(f"{text}; run again with --debug for the traceback", style="red")
        sys.exit(1)


def _end_among_others(status: int) -> None:
    """End a process of several that learned together, without Python's own end: a thread of torch's may still let go of
    tensors then, which aborts the process."""
    distributed = sys.modules.get("torch.distributed")  # slow to import
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _print(text: str, style: str | None = None) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True, style=style)


def _stopped(arguments: list[str]) -> str:
    """What to say after Ctrl-C: how to go on, where a command's --out holds something to go on with."""
    name = next(iter(arguments), "")
    named = [a.removeprefix("--out=") for a in arguments if a.startswith("--out=")]
    named += [following for option, following in pairwise(arguments) if option == "--out"]
    out = (named or ["runs/demo" if name == "demo" else ""])[-1]
    if not out or not (is_run(Path(out)) or is_study(Path(out)) or (name == "demo" and _is_demo(Path(out)))):
        return "stopped"
    again = f"protege {name} --resume --out {shlex.quote(out)}"
    return f"stopped; go on with {'the same command and --resume' if name == 'study' else again}"


def _is_demo(out: Path) -> bool:
    from ..run.demo import is_demo

    return is_demo(out)


def _sentence(error: Any) -> str:
    """An error on one line; click's own (an unknown option, a missing one) with the remedy that they lack."""
    if isinstance(error, UserError):
        text = " ".join(str(error).splitlines())
        return text if text.endswith((".", "?")) else f"{text}."
    text = " ".join(error.format_message().split()).replace(". Did you mean", "; did you mean").rstrip(".?")
    context = getattr(error, "ctx", None)
    if text.startswith("No such option") and context:
        text = f"no such option {error.option_name}; {_remedy(error.option_name, context)}"
    elif text.startswith("No such command"):
        wrong = text.split("'")[1]
        text = f"no such command {wrong!r}; {nearest(wrong, COMMANDS, also=COMMAND_NAMES, all_of='commands')}"
    return f"{text[:1].lower()}{text[1:]}; see {context.command_path if context else 'protege'} --help."


def _remedy(wrong: str, context: Any) -> str:
    """What may have been meant by an option that a command does not have."""
    options = [name for option in context.command.params for name in option.opts if name.startswith("--")]
    others = {other: "--" + name.replace("_", "-") for other, name in SETTING_NAMES.items()}
    others = {other: name for other, name in others.items() if name in options}
    if hint := nearest(wrong, options, " ", also=others).strip():
        return hint
    if context.parent is None:
        return "the options of a command stand behind its name"
    owners = [name for name in COMMANDS if any(wrong in option.opts for option in command(name).params)]
    return f"it is one of {' and '.join(owners)}" if owners else "there is none like it"
