"""`clipcap ask`: questions with candidate answers in, what each image answers out."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from clipcap import candidatefiles, promotions, storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.settings import Settings
from clipcap.stages.ask import UNKNOWN, Asked, AskSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.stages.ask import Answers

_SHOWN = 20
WAYS = ("clip_score", "logprob", "both")
_ANSWERS = (
    "The candidate answers: red,blue,green; or a JSON list; or @FILE with one a line. Give the "
    "option once for each question, in their order, or once for all that imply none."
)


class AskingSettings(Settings):
    """What `clipcap ask` may be told."""

    ask: AskSettings = AskSettings()
    """What images are asked, and who answers."""
    embed: EmbedSettings = EmbedSettings()
    """The encoder of the embeddings: its text side reads the answers."""
    speed: Speed = Speed()
    """Where the models run."""


@click.command()
@options.choices(
    AskingSettings,
    Choice("--by", ("ask.by",), (AskSettings, "by"), click.Choice(WAYS)),
    Choice("--captioner", ("ask.captioner",), (AskSettings, "captioner")),
    Choice("--typical", ("ask.typical",), (AskSettings, "typical"), int),
    Choice("--threshold", ("ask.threshold",), (AskSettings, "threshold"), float),
    Choice("--top-k", ("ask.top_k",), (AskSettings, "top_k"), int),
    options.MODEL,
    Choice("--device", ("speed.device",), (Speed, "device")),
)
@json_option
@click.option("--question", "questions", multiple=True, help="Give the option once for each.")
@click.option("--answers", "answers", multiple=True, metavar="LIST", help=_ANSWERS)
@click.option("--to", metavar="FOLDER", help="Where the tables are written; else counts are told.")
@click.argument("out")
def ask(
    out: str, settings: AskingSettings, to: str | None, *, as_json: bool, **typed: Sequence[str]
) -> None:
    """Ask every image of OUT questions with candidate answers.

    No image is read, only the embeddings. Writes a Parquet table for each shard to --to: the best
    answers of each image, with scores that are calibrated on the collection, and whether the first
    is accepted. Called again it computes what is new or was changed.
    """
    from clipcap.stages.ask import ask as stage

    began = time.perf_counter()
    out = storage.canonical(out)
    told = settings.ask.model_dump()
    if typed["questions"] or typed["answers"]:
        answers = [listed(one, out) for one in typed["answers"]]
        told["questions"] = paired(typed["questions"], answers)
    if settings.ask.by != "clip_score":
        told["captioner"] = promotions.resolved(out, settings.ask.captioner)
    with nullcontext(to) if to else tempfile.TemporaryDirectory(prefix="clipcap-ask-") as folder:
        done = stage(
            out,
            str(folder),
            settings=AskSettings.model_validate(told),
            encoder=settings.embed,
            speed=settings.speed,
        )
    if as_json:
        click.echo(json.dumps(_told(done, to), indent=1))
        return
    _show(done, settings.ask.by, to, time.perf_counter() - began)


def listed(text: str, out: str) -> tuple[str, ...]:
    """Return the answers that an option holds: split at commas, a JSON list, or those of a file.

    Raises:
        SettingsError: a list that is no JSON, or a file of something else.
        NotFoundError: there is no such file.
    """
    if text.startswith("@"):
        found = candidatefiles.read(text[1:], out).same
        if not found:
            raise SettingsError(
                f"{text[1:]} must hold answers, one a line, or a JSON list of them."
            )
        return found
    if not text.lstrip().startswith("["):
        return tuple(text.split(","))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f'The answers must be red,blue,green or a JSON list such as ["red, or pink", "blue"], '
            f"but {text[:200]!r} is neither: {error}."
        ) from error
    if not all(isinstance(one, str | int | float) for one in value):
        raise SettingsError(f"The answers must be a list of texts or numbers, but are {text!r}.")
    return tuple(map(str, value))


def paired(questions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[Asked, ...]:
    """Return each question with its answers: those in its place, or the only ones.

    Raises:
        SettingsError: there are neither as many answers as questions, nor one, nor none.
    """
    if len(answers) == len(questions):
        return tuple(
            Asked(question=question, answers=tuple(one))
            for question, one in zip(questions, answers, strict=True)
        )
    if len(answers) > 1 or not questions:
        raise SettingsError(
            f"There must be one list of answers for each question, or one for all, but "
            f"{len(answers)} --answers stand beside {len(questions)} --question."
        )
    same = tuple(answers[0]) if answers else ()
    return tuple(Asked(question=one, answers=() if _implies(one) else same) for one in questions)


def _implies(question: str) -> bool:
    from clipcap.questions import understood

    try:
        return bool(understood(question).answers)
    except SettingsError:
        return False


def _told(done: Answers, to: str | None) -> dict[str, object]:
    counts = ("images", "computed", "written", "unchanged", "removed")
    return {
        "folder": done.folder if to else None,
        **{name: getattr(done, name) for name in counts},
        "questions": [
            {
                "question": one.text,
                "kind": one.kind,
                "answers": {text: given[n] for n, text in enumerate(one.answers)},
                "unknown": given[UNKNOWN],
            }
            for one, given in zip(done.questions, done.given, strict=True)
        ],
    }


def _show(done: Answers, by: str, to: str | None, seconds: float) -> None:
    from flows.console import shown, tables_console

    count = len(done.questions)
    click.echo(
        f"ask       {done.images:,} images, {count} question{'s' * (count > 1)} by {by}: "
        f"{done.computed:,} computed, {done.written:,} tables written, "
        f"{done.unchanged:,} unchanged, {done.removed:,} removed, {seconds:.1f} s"
    )
    for question, given in zip(done.questions, done.given, strict=True):
        table = Table(escape(question.text), box=None, pad_edge=False, header_style="bold")
        table.add_column("images", justify="right")
        for answer, number in given.most_common(_SHOWN):
            text = "(no answer)" if answer == UNKNOWN else escape(question.answers[answer])
            table.add_row(text, f"{number:,}")
        tables_console().print(table)
    if to:
        click.echo(f"written   {shown(done.folder)}")
