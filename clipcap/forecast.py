"""A plan and what earlier nights took in; what this night will read, write and take, out.

Changes nothing. What a stage has to do beside the new images is told from which shards have a table
of the model: one that was made by other weights of the same name is taken for done.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

from clipcap import commits, layout, manifest, storage, tables
from clipcap.errors import NotFoundError
from clipcap.layout import Run, Shard
from clipcap.plans import Plan, task_count

_NIGHTS: Final = 20  # of the past: old rates are those of another machine or version
_TAR_BYTES: Final = 2_048  # that a tar adds to an image: headers, padding, its captions
_MANIFEST_BYTES: Final = 700  # per image, where no earlier night tells
_COLUMNS: Final = {
    "embed": ("embedded",),
    "caption": ("captioned",),
    "label": ("labelled",),
    "shard": ("new", "changed"),
}
"""What the row of a run says of how many images a stage did."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A stage that follows on the shards: of which models or label sets, and where they write.

    `row_bytes` is about what a row takes, where no earlier night tells.
    """

    stage: Literal["embed", "caption", "label"]
    of: tuple[str, ...]
    folders: tuple[str, ...]
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One stage: images to do (for each label set), tasks, and seconds by the rate so far."""

    stage: str
    of: str
    images: int
    tasks: int
    images_per_second: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """The cost of a night; `seconds` is None where no earlier night tells the rate of a stage."""

    source: str
    listed: int
    new: int
    changed: int
    deleted: int
    unchanged: int
    to_retry: int
    """Of the new: rejected before, and tried again."""
    shards: int
    shards_left: int
    """Shards that images leave."""
    in_place: bool
    bytes_to_read: int
    bytes_to_write: int
    steps: tuple[Step, ...]
    nights: int
    """Earlier nights that the rates are of."""

    @property
    def seconds(self) -> float | None:
        """All stages together, if the rate of each that has work is known."""
        known = [step.seconds for step in self.steps if step.seconds is not None]
        return sum(known) if len(known) == len(self.steps) else None


def forecast(plan: Plan, *, run: Run, wanted: Sequence[Wanted], shards_per_task: int) -> Forecast:
    """Return what a planned night will cost."""
    live = frozenset(manifest.shards(run.out))
    taken = plan.new + plan.changed
    past = _past(run.out)
    sizes = _row_bytes(run.out)
    writes = taken * sizes.get(layout.table(run.out, "manifest"), _MANIFEST_BYTES)
    size = sum(part.size_bytes for part in plan.planned)
    writes += 0 if plan.in_place else size + taken * _TAR_BYTES
    planned, left = len(plan.planned), len(plan.retired)
    tasks = sum(task_count(shards, shards_per_task) for shards in (planned, left))
    steps = [_step("shard", "", taken, tasks, past)]
    for one in wanted:
        lacking = [_missing(run.out, live, folder) for folder in one.folders]
        missing = [more for more, _ in lacking]
        images = sum(taken + more for more in missing)
        lack = max((shards for _, shards in lacking), default=0)
        tasks = task_count(planned + left + lack, shards_per_task)
        steps.append(_step(one.stage, ", ".join(one.of), images, tasks, past))
        writes += sum(
            (taken + more) * sizes.get(folder, one.row_bytes)
            for folder, more in zip(one.folders, missing, strict=True)
        )
    return Forecast(
        source=plan.source,
        listed=plan.listed,
        new=plan.new,
        changed=plan.changed,
        deleted=plan.deleted,
        unchanged=plan.unchanged,
        to_retry=sum(part.retried for part in plan.planned),
        shards=len(plan.planned),
        shards_left=len(plan.retired),
        in_place=plan.in_place,
        bytes_to_read=size,
        bytes_to_write=int(writes),
        steps=tuple(steps),
        nights=len(past),
    )


def _step(stage: str, of: str, images: int, tasks: int, past: Sequence[Mapping[str, Any]]) -> Step:
    rate = _rate(stage, of, past)
    seconds = 0.0 if not images else images / rate if rate else None
    return Step(stage, of, images, tasks, rate, seconds)


def _rate(stage: str, of: str, past: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the images per second of a stage in the night that had most work for it.

    In small nights loading the model is most of the time.
    """
    images, seconds = 0, 0.0
    for row in past:
        done = sum(row[name] or 0 for name in _COLUMNS[stage])
        took = sum(one["seconds"] for one in row["stage_seconds"] or () if one["stage"] == stage)
        is_of = stage in ("shard", "label") or of in (row["model_ids"] or ())
        if done > images and took and is_of:
            images, seconds = done, took
    return images / seconds if images else None


def _past(out: str) -> list[dict[str, Any]]:
    """Return the rows of the last completed runs of an output."""
    columns = ["state", "stage_seconds", "model_ids", "new", "changed"]
    columns += ["embedded", "captioned", "labelled"]
    urls = [found.url for found in manifest.objects(out, "runs")][-_NIGHTS:]
    rows = [row for url in urls for row in tables.read(url, columns).to_pylist()]
    return [row for row in rows if row["state"] == "Completed"]


def _row_bytes(out: str) -> dict[str, float]:
    """Return how many bytes a row takes, by folder of a table, in the newest whole run."""
    try:
        latest = json.loads(storage.read(layout.latest(out)))
        listed = json.loads(storage.read(layout.run_manifest(out, latest["run_id"])))["objects"]
    except NotFoundError:
        return {}
    counted: dict[str, tuple[int, int]] = {}
    for one in listed:
        if one.get("rows"):
            folder = layout.folder_of(f"{out}/{one['url']}")
            size, rows = counted.get(folder, (0, 0))
            counted[folder] = size + one["size_bytes"], rows + one["rows"]
    return {folder: size / rows for folder, (size, rows) in counted.items()}


def _missing(out: str, live: Collection[Shard], folder: str) -> tuple[int, int]:
    """Return the live images in shards that have no table in a folder, and the number of those."""
    done = {layout.shard_of(found.url) for found in storage.listed(folder)}
    without = [shard for shard in live if shard not in done]
    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="forecast") as pool:
        found = pool.map(lambda shard: commits.find(layout.manifest(out, shard)), without)
        return sum(commit.rows for commit in found if commit), len(without)
