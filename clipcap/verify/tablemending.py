"""A table of one shard and its live images in; the table as it can stay, as bytes, or none, out."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from clipcap import tables
from clipcap.commits import Fingerprint
from clipcap.settings import digest
from clipcap.verify import salvage
from clipcap.verify.objects import Opened


@dataclass(frozen=True, slots=True)
class Live:
    """The rows of a shard's manifest, and their digest."""

    rows: pa.Table
    members: str


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What is to be written, and why."""

    data: bytes
    why: str


class Sound:
    """There is nothing to mend, or the next run mends it from the rows that are there."""


def mended(one: Opened, live: Live) -> Rewritten | Sound | None:
    """Return what becomes of embeddings, captions or labels; None: nothing of them can be trusted.

    What lacks rows says so in its fingerprint, and the next run computes just these.
    """
    if any(problem.kind in ("footer", "fingerprint") for problem in one.problems):
        return None
    rows = salvage.restored(one)
    if rows is None:
        return None
    good = salvage.chained(one, rows)
    is_stale = one.footer["members"] != live.members  # the next run brings it to the live images
    kept = good if is_stale else salvage.of_live(good, live.rows)
    lacks = salvage.identities(live.rows) - salvage.identities(kept)
    dropped = one.rows.num_rows - kept.num_rows
    if one.sound and not dropped and (is_stale or not lacks):
        return Sound()
    if not kept.num_rows and lacks:
        return None
    is_partial = bool(lacks) or is_stale
    members = digest(sorted(salvage.identities(kept))) if is_partial else live.members
    over = Fingerprint(one.footer["recipe"], members, one.footer.get("review", ""))
    footer = {**one.footer, "members": members, "fingerprint": over.value}
    why = f"rows that cannot be go: {dropped}; images to be done again: {len(lacks)}"
    return Rewritten(tables.to_bytes(kept, footer), why)
