"""A table of captions in; what other programs read, and how much of it was written, out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """What a sink did, in rows: each is counted once.

    `unchanged` rows were there already, word for word; `skipped` ones have no caption, no place, or
    a place that the settings say to leave alone.
    """

    written: int = 0
    unchanged: int = 0
    skipped: int = 0
