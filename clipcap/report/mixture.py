"""Label tables in; how often each label is the best one, tonight and before, out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import layout, storage, tables
from clipcap.layout import Shard

UNKNOWN: Final = ""
"""Stands for "no accepted label"."""
EARLIER_SHARDS: Final = 50  # bounds the time; a comparison needs no more
_SHOWN: Final = 12
_SMOOTHING: Final = 0.5  # a label that was never seen must not make the index infinite
_LOOK: Final = 0.1
_ACT: Final = 0.25
_COLUMNS: Final = ["label", "rank", "accepted", "run_id"]


@dataclass(frozen=True, slots=True)
class Share:
    """One label: images tonight and in earlier shards, and the share of each, 0 to 1."""

    label: str
    images: int
    share: float
    share_before: float


@dataclass(frozen=True, slots=True)
class Mix:
    """The labels of one label set; `psi`, the population stability index, needs a before."""

    label_set: str
    images: int
    before: int
    shares: tuple[Share, ...]
    rest: int
    psi: float | None

    @property
    def moved(self) -> bool:
        """Whether somebody should act."""
        return self.psi is not None and self.psi >= _ACT

    @property
    def verdict(self) -> str:
        """What the index means."""
        if self.psi is None:
            return "Nothing earlier to compare with."
        if self.psi < _LOOK:
            return "The mix is as before."
        return "The mix is another one: act." if self.moved else "The mix has moved: look."


def count(table: pa.Table, run_id: str, *, of_this_run: bool = True) -> Counter[str]:
    """Count the best labels in rows of this run, or of all others."""
    kept = table.filter(pc.equal(table["rank"], 1))
    mine = pc.equal(kept["run_id"], run_id)
    kept = kept.filter(mine if of_this_run else pc.invert(mine))
    named = pc.if_else(kept["accepted"], kept["label"], UNKNOWN)
    return Counter({str(row["values"]): row["counts"] for row in named.value_counts().to_pylist()})


def earlier(folder: str, run_id: str, leave_out: Collection[Shard]) -> Counter[str]:
    """Count the best labels in the newest shards of a label set that are not of this night."""
    urls = [found.url for found in storage.list_objects(folder) if found.url.endswith(".parquet")]
    others = [url for url in urls if layout.shard_of(url) not in leave_out]
    counted: Counter[str] = Counter()
    for url in others[-EARLIER_SHARDS:]:
        counted += count(tables.read(url, _COLUMNS), run_id, of_this_run=False)
    return counted


def compare(label_set: str, now: Counter[str], before: Counter[str]) -> Mix:
    """Return the mix of one label set beside what it was."""
    total, total_before = now.total(), before.total()
    ordered = sorted(now | before, key=lambda label: (-now[label], -before[label], label))
    shares = [
        Share(label, now[label], now[label] / max(total, 1), before[label] / max(total_before, 1))
        for label in ordered
    ]
    return Mix(
        label_set=label_set,
        images=total,
        before=total_before,
        shares=tuple(shares[:_SHOWN]),
        rest=sum(share.images for share in shares[_SHOWN:]),
        psi=_stability(ordered, now, before) if total and total_before else None,
    )


def _stability(labels: Sequence[str], now: Counter[str], before: Counter[str]) -> float:
    p = [now[label] + _SMOOTHING for label in labels]
    q = [before[label] + _SMOOTHING for label in labels]
    pairs = [(a / sum(p), b / sum(q)) for a, b in zip(p, q, strict=True)]
    return sum((a - b) * math.log(a / b) for a, b in pairs)
