"""Words typed in a terminal in, a flow started or a question answered out: the command `clipcap`.

Nothing is imported before a command needs it: `clipcap --help` waits for no library but click.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Final

import click

import clipcap
from clipcap.errors import AccessDeniedError, ClipcapError, NotFoundError

COMMANDS: Final = {
    "demo": ("demo", "Caption and label the bundled pictures with the bundled model."),
    "run": ("run", "Caption and label what is new in SOURCE, and publish it in OUT."),
    "plan": ("plan", "Say what a night over SOURCE would do to OUT and cost; change nothing."),
    "shard": ("stages", "Read what is new in SOURCE into shards of OUT."),
    "embed": ("stages", "Embed every live image of OUT that is not embedded yet."),
    "caption": ("stages", "Caption every embedded image of OUT that has no caption yet."),
    "label": ("stages", "Label every embedded image of OUT that has no labels yet."),
    "choose": (
        "choose",
        "Choose for every image of OUT among candidate texts the ones that fit best.",
    ),
    "ask": ("ask", "Ask every image of OUT questions with candidate answers."),
    "where": ("where", "Look at parts of every image of OUT, and say where in it labels are seen."),
    "train": (
        "stages",
        "Train a captioner on the captions that people wrote for OUT's images, or on texts alone.",
    ),
    "bench": (
        "bench",
        "Measure how fast every stage is here, what waits for what, what to change.",
    ),
    "import-clipcap": (
        "convert",
        "Read a checkpoint of the original ClipCap, FILE, and write it as a captioner to FOLDER.",
    ),
    "export-clipcap": ("convert", "Write CAPTIONER as a checkpoint of the original ClipCap, FILE."),
    "models": ("models", "List the models on this machine, and some that can be had."),
    "labels": (
        "labels",
        "List, check, propose, fit, learn and judge label sets.",
    ),
    "evaluate": ("evaluate", "Judge the captions of OUT by what people wrote for the same images."),
    "compare": (
        "evaluate",
        "Say for each metric whether B is better, not worse or worse than A.",
    ),
    "calibrate-captions": (
        "calibrate",
        "Measure below which scores captions of OUT want a second look; keep it by the captioner.",
    ),
    "drift": ("drift", "Say how the newest night over OUT differs from those before it."),
    "compact": ("upkeep", "Merge the small shards of OUT into few; readers see the same."),
    "vacuum": ("upkeep", "Remove from OUT what nothing names, and the dead bytes of its tars."),
    "verify": ("verify", "Check every file of OUT against contract, digests and commits."),
    "lease": ("lease", "Say who works on OUT, since when, and the last sign of life."),
    "automations": (
        "automations",
        "Compare automations of the Prefect server with a file, or bring them up to date.",
    ),
    "migrate": ("migrate", "Bring OUT, made by an older version, to today's contract."),
    "forget": ("forget", "Take IMAGES out of every object of OUT, prove it, and keep them out."),
    "doctor": ("doctor", "Look whether everything a run needs is here."),
}
"""Command to the file of `flows/commands` that has it, and its help in one line."""
INTERRUPTED: Final = 130
_LIBRARY: Final = logging.getLogger("clipcap")
_STRANGERS: Final = "images"
"""The argument that names images by addresses which strangers gave them: `clipcap forget`."""
_TOLD: Final = ("clipcap.embedder", "clipcap.trainer")
"""Say where a model runs and how fast it is or learns; else below a warning is for --debug."""


class Commands(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order they are told."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"flows.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        own = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *own):
            if not any(parameter.name == "debug" for parameter in one.params):
                one.params.append(_debug_option())
                _look_first(one)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _look_first(command: click.Command) -> None:
    """Have a command refuse, before any work, secrets and an output of a newer version."""
    for parameter in command.params:
        if parameter.callback is None and parameter.name != _STRANGERS:
            parameter.callback = _require_plain


def _require_plain(_context: click.Context, parameter: click.Parameter, given: Any) -> object:  # noqa: ANN401 - of any type
    from clipcap import contracts, credentials, storage

    credentials.refuse(given)
    if given and isinstance(parameter, click.Argument) and parameter.name == "out":
        with suppress(NotFoundError, AccessDeniedError):  # the command itself says more of these
            contracts.require_known(storage.canonical(given))
    return given


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Show every log line, and the traceback of an error.",
    )


def _set_debug(_context: click.Context, _parameter: click.Parameter, value: Any) -> None:  # noqa: ANN401
    if value:
        _LIBRARY.setLevel(logging.DEBUG)


def _is_debugging() -> bool:
    return _LIBRARY.level == logging.DEBUG


class _Stderr(logging.Handler):
    """Prints warnings, and with --debug everything, to where stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        told = record.levelno >= logging.WARNING or record.name in _TOLD
        if told or _is_debugging():
            click.echo(_plain(self.format(record)), err=True)


@click.command(cls=Commands, params=[_debug_option()])
@click.version_option(clipcap.__version__, prog_name="clipcap", message="%(prog)s %(version)s")
def cli() -> None:
    """Look at the new images in a bucket and write down what is in them."""


def main() -> None:
    """Run the command line and exit with the code of the error, if there is one."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # else Prefect and the hub's client report home
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LIBRARY.addHandler(handler)
    _LIBRARY.propagate = False  # Prefect prints what reaches the root
    for name in _TOLD:
        logging.getLogger(name).setLevel(logging.INFO)
    sys.excepthook = _unexpected
    signal.signal(signal.SIGTERM, _end)
    sys.exit(_run())


def _plain(text: str) -> str:
    """Return a text without the secrets of the addresses in it."""
    from clipcap import credentials

    return credentials.without(text)


def _end(number: int, _frame: FrameType | None) -> None:
    """End as any error does, so that what is held is given back."""
    sys.exit(128 + number)


def _run() -> int:
    try:
        code: object = cli.main(prog_name="clipcap", standalone_mode=False)
    except ClipcapError as error:
        return report(error)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        click.echo(_plain(told.getvalue()), nl=False, err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped. What is committed stays; the same command goes on.", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # `clipcap models --all | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def report(error: ClipcapError) -> int:
    """Say what happened in one block, the traceback only where asked for; return the exit code."""
    if _is_debugging():
        click.echo(_plain("".join(traceback.format_exception(error))), nl=False, err=True)
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(_plain(str(error)), err=True)
    cause = error.__cause__  # of failed partitions: the first one's error
    known = type(error).exit_code == 1 and isinstance(cause, ClipcapError)
    return cause.exit_code if known and isinstance(cause, ClipcapError) else error.exit_code


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if _is_debugging():
        told = traceback.format_exception(kind, error, trace)
        click.echo(_plain("".join(told)), nl=False, err=True)
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(
        f"{kind.__name__}: {_plain(str(error))}\nThis was not foreseen; --debug shows where it "
        "comes from. What is committed stays.",
        err=True,
    )


if __name__ == "__main__":
    main()
