"""A night and what was gathered of it in; the sentence, the numbers and the table of stages out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from clipcap.outcomes import Night, StageName, total
from clipcap.report.gathering import Gathered
from clipcap.report.rejected import Group
from clipcap.stability import Drift

_MANY_REJECTS: Final = 0.05
_MINUTE_S: Final = 60.0
_HOUR_S: Final = 3600.0
_STAGES: Final[tuple[StageName, ...]] = ("shard", "embed", "caption", "label")


@dataclass(frozen=True, slots=True)
class Tile:
    """One number with its name and what stands below it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Speed:
    """One stage: `rate` in images per second of wall time, `model` as share of its work."""

    stage: str
    shards: int
    written: int
    computed: int
    rejected: int
    seconds: str
    rate: str
    model: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the night went: one sentence, and what else a reader should know at once."""

    tone: Literal["quiet", "good", "look"]
    sentence: str
    more: str = ""


def number(value: float) -> str:
    """Return a count with thin gaps between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Return a time as a person says it."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S:.0f} min {seconds % _MINUTE_S:.0f} s"
    return f"{seconds // _HOUR_S:.0f} h {seconds % _HOUR_S // _MINUTE_S:.0f} min"


def images(count: int, kind: str = "") -> str:
    """Return `1 image`, `2 images`; `kind` goes before the noun."""
    return f"1 {kind}image" if count == 1 else f"{number(count)} {kind}images"


def taken_in(night: Night) -> int:
    """Return how many images this run read and kept."""
    return sum(outcome.computed for outcome in night.of("shard"))


def verdict(night: Night, gathered: Gathered, rejected: Sequence[Group]) -> Verdict:
    """Say what the night did and whether somebody should look."""
    taken = taken_in(night)
    out = sum(group.count for group in rejected)
    sentence = _what_was_done(night, taken, out)
    parts = []
    if night.plan and night.plan.deleted:
        gone = images(night.plan.deleted)
        parts.append(f"{gone} gone from the source left every table.")
    if out:
        parts.append(_left_out(out, out + taken, rejected))
    if gathered.in_queue:
        parts.append(f"{number(gathered.in_queue)} {_wait(gathered.in_queue)} for a second look.")
    if night.drift and night.drift.level != "ok":
        parts.append(_drifted(night.drift))
    many = out > _MANY_REJECTS * max(out + taken, 1)
    moved = any(mix.moved for mix in gathered.mixes)
    if night.drift and (night.drift.measures or night.drift.canaries):
        moved = night.drift.level != "ok"
    if many or gathered.in_queue or moved:
        return Verdict("look", sentence, " ".join(parts))
    return Verdict("good" if taken or gathered.images else "quiet", sentence, " ".join(parts))


def _what_was_done(night: Night, taken: int, out: int) -> str:
    captioned = sum(outcome.computed for outcome in night.of("caption"))
    labelled = len({o.shard for o in night.of("label") if o.computed})
    done = [name for name, did in (("captioned", captioned), ("labelled", labelled)) if did]
    if taken:
        words = " and ".join(done) or "taken in"
        return f"{images(taken, _kind(night))} {_were(taken)} {words}."
    if done:
        embedded = max(sum(o.computed for o in night.of(name)) for name in _STAGES)
        return f"No new image. {images(embedded)} {_were(embedded)} {' and '.join(done)} again."
    if out:
        return "No image could be used."
    if night.plan:
        return f"Nothing new: all {images(night.plan.unchanged, 'listed ')} are unchanged."
    return "Nothing new."


def _left_out(out: int, read: int, rejected: Sequence[Group]) -> str:
    mostly = ", mostly" if len(rejected) > 1 else ":"
    reason = rejected[0].reason.replace("_", " ")
    return f"{number(out)} ({out / read:.0%}) {_were(out)} left out{mostly} \u201c{reason}\u201d."


def _drifted(drift: Drift) -> str:
    names = [f"{one.name} of {one.of}" if one.of else one.name for one in drift.over]
    told = [f"Not as on earlier nights: {', '.join(names)}."] if names else []
    if drift.moved:
        told.append(f"{len(drift.moved)} of {len(drift.canaries)} canaries moved.")
    return " ".join(told)


def _kind(night: Night) -> str:
    if night.plan is None or (night.plan.new and night.plan.changed):
        return "new or changed "
    return "new " if night.plan.new else "changed "


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _wait(count: int) -> str:
    return "caption waits" if count == 1 else "captions wait"


def tiles(night: Night, gathered: Gathered, rejected: Sequence[Group]) -> list[Tile]:
    """Return the four numbers."""
    plan = night.plan
    captioned = sum(outcome.computed for outcome in night.of("caption"))
    taken, out = taken_in(night), sum(group.count for group in rejected)
    score = "" if gathered.clip_score is None else f"mean CLIPScore {gathered.clip_score:.2f}"
    return [
        Tile(
            "listed",
            number(plan.listed) if plan else "\u2013",
            f"{number(plan.unchanged)} unchanged, {number(plan.deleted)} gone" if plan else "",
        ),
        Tile(
            "taken in",
            number(taken),
            f"of {number(plan.new)} new, {number(plan.changed)} changed" if plan else "",
        ),
        Tile("captioned", number(captioned), score),
        Tile("left out", number(out), f"{out / (out + taken):.1%} of what was read" if out else ""),
    ]


def speeds(night: Night) -> list[Speed]:
    """Return one row per stage that ran; wall time is the flow's, or the sum over shards."""
    wall = dict(night.seconds)
    rows = []
    for stage in _STAGES:
        outcomes = night.of(stage)
        if not outcomes:
            continue
        work_s = sum(outcome.duration_s for outcome in outcomes)
        found = total(stage, outcomes, seconds=wall.get(stage, work_s))
        rate = found.computed / found.seconds if found.seconds > 0 else 0.0
        rows.append(
            Speed(
                stage=stage,
                shards=found.shards,
                written=found.written,
                computed=found.computed,
                rejected=found.rejected,
                seconds=duration(found.seconds),
                rate=f"{rate:.1f}" if found.computed else "\u2013",
                model=min(found.model_s / work_s, 1.0) if found.model_s and work_s else None,
            )
        )
    return rows
