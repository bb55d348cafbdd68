"""A label set that was fitted or learnt in, its file written and what is known of it told, out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import click

from clipcap.labels import fitted
from clipcap.labels.fitted import Fitted
from clipcap.settings import Settings
from flows.commands._start import typed

T = TypeVar("T", bound=Settings)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a label set goes, and the output that it was fitted to, as a person typed them."""

    to: str
    out: str


def keep(
    found: Fitted[T], place: Place, tell: Callable[[Fitted[T]], None], *, as_json: bool
) -> None:
    """Write the label set, and tell of it: for machines as one object, for people in lines."""
    fitted.write(found.bank, place.to)
    if as_json:
        click.echo(json.dumps(found.everything() | {"kept_in": place.to}, indent=1))
        return
    tell(found)
    use = typed("label", place.out, "--label-set", place.to)
    click.echo(f"kept      {place.to}\nuse it    {use}")
