"""`clipcap labels propose`: an embedded output in, a draft of a label set out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from clipcap import storage
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError
from clipcap.labels.proposing import ProposeSettings
from clipcap.settings import Settings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.labels.proposing import Proposal

_SHOWN = 20


class ProposingSettings(Settings):
    """What `clipcap labels propose` may be told."""

    propose: ProposeSettings = ProposeSettings()
    """How images are told apart and named."""
    embed: EmbedSettings = EmbedSettings()
    """The encoder of the embeddings: its text side reads the words."""


def _choice(flag: str, kind: type = str) -> Choice:
    name = flag.removeprefix("--")
    return Choice(flag, (f"propose.{name}",), (ProposeSettings, name), kind)


@click.command("propose")
@options.choices(
    ProposingSettings,
    _choice("--clusters", int),
    _choice("--words"),
    _choice("--template"),
    _choice("--images", int),
    _choice("--seed", int),
    options.MODEL,
)
@json_option
@click.option("--to", required=True, metavar="FILE.toml", help="Where the draft is written.")
@click.argument("out")
def propose_command(out: str, settings: ProposingSettings, to: str, *, as_json: bool) -> None:
    """Find kinds of images in OUT, name them, and write a draft of a label set.

    Reads the stored embeddings; says for each kind how many images are like it and the keys of
    some, so that a person can look, rename, merge and leave out.
    """
    from clipcap.labels import proposing, sets

    url = _free(to)
    found = proposing.propose(
        storage.canonical(out), settings=settings.propose, encoder=settings.embed
    )
    storage.write(url, proposing.draft(found, sets.name_of(to)).encode())
    sets.load(url)
    if as_json:
        click.echo(json.dumps({"file": url, **_told(found)}, indent=1))
        return
    _show(found, to)


def _free(to: str) -> str:
    url = storage.canonical(to)
    if not url.endswith(".toml"):
        raise SettingsError(f"The draft must be called .toml, but is to be {to}.")
    if storage.info(url) is not None:
        raise SettingsError(
            f"The draft must be a new file, but {to} is there already: somebody may have worked on "
            "it. Give another name, or remove it."
        )
    return url


def _told(found: Proposal) -> dict[str, object]:
    told = {name: getattr(found, name) for name in ("images", "live", "words", "unknown")}
    return {**told, "clusters": [asdict(one) for one in found.clusters]}


def _show(found: Proposal, to: str) -> None:
    from flows.console import tables_console

    unknown = f"; {found.unknown:,} the encoder does not know" if found.unknown else ""
    click.echo(
        f"propose   {len(found.clusters):,} kinds among {found.images:,} of {found.live:,} images, "
        f"named out of {found.words:,} words{unknown}"
    )
    table = Table("label", box=None, pad_edge=False, header_style="bold")
    table.add_column("images", justify="right")
    table.add_column("or")
    for one in found.clusters[:_SHOWN]:
        table.add_row(escape(one.name), f"{one.images:,}", escape(", ".join(one.others)))
    tables_console().print(table)
    click.echo(f"written   {to}; `clipcap labels check {to}` when you have worked on it")
