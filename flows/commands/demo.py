"""`clipcap demo`: a folder in, a night over the bundled pictures out, and what to try next."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import pyarrow.compute as pc
from rich.table import Table

import clipcap
from clipcap import tables
from clipcap.outcomes import Night
from flows.commands._start import Start, json_option, tell
from flows.settings import NightlySettings

PICTURES: Final = Path(clipcap.__file__).parent / "bundled" / "pictures"
_SHOWN: Final = 6
_MAX_REJECT_RATE: Final = 0.2  # one of the two dozen pictures is cut short, to show a reject


@click.command()
@json_option
@click.argument("out", default="./demo-out")
def demo(out: str, *, as_json: bool) -> None:
    """Caption and label the bundled pictures with the bundled model.

    Writes into OUT, ./demo-out unless told otherwise. A second run finds everything unchanged.
    """
    from flows.nightly import nightly

    if not as_json:
        click.echo(
            "The bundled model knows only the picture-book scenes that it was trained on; "
            "photographs need a real one.\n"
        )
    settings = NightlySettings(max_reject_rate=_MAX_REJECT_RATE)
    finished = Start(server=False, as_json=as_json)(nightly, str(PICTURES), out, settings)
    if not as_json:
        _show(finished.night)
    tell(finished, as_json=as_json)
    if not as_json:
        click.echo(_next(out))


def _show(night: Night) -> None:
    """Print a few captions and labels, as the tables have them."""
    from flows.console import tables_console

    table = Table("picture", "caption", "labels", box=None, pad_edge=False, header_style="bold")
    for row in islice(_examples(night), _SHOWN):
        table.add_row(*row)
    click.echo()
    tables_console().print(table)
    click.echo()


def _examples(night: Night) -> Any:  # noqa: ANN401 - an iterator of rows of text
    for outcome in night.of("caption"):
        labels = _labels([found.url for found in night.of("label") if found.shard == outcome.shard])
        found = tables.read(outcome.url, columns=["image_id", "source_uri", "caption"])
        for row in found.sort_by("source_uri").to_pylist():
            name = row["source_uri"].rpartition("/")[2]
            yield name, row["caption"] or "", ", ".join(labels.get(row["image_id"], []))


def _labels(urls: list[str]) -> dict[str, list[str]]:
    """Return the accepted labels of each image."""
    accepted: dict[str, list[str]] = {}
    for url in urls:
        table = tables.read(url, columns=["image_id", "label", "accepted"])
        for row in table.filter(pc.field("accepted")).to_pylist():
            accepted.setdefault(row["image_id"], []).append(row["label"])
    return accepted


def _next(out: str) -> str:
    hints = {
        f"clipcap demo {out}": "again: everything is found unchanged",
        f"clipcap verify {out}": "check every file",
        f"less {out}/README.md": "read the tables in pandas, Polars, DuckDB, Spark",
        "clipcap models": "see which models can be had",
        "clipcap run --help": "your own images, with a real model",
    }
    width = max(map(len, hints)) + 3
    return "\n".join(["\nTry next", *(f"  {what:<{width}}{why}" for what, why in hints.items())])
