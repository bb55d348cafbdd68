"""An output in, a stop out where more of its new images were rejected than a night allows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from typing import Final

from clipcap import commits, layout, manifest, plans, storage
from clipcap.errors import DamagedError, NotFoundError, TooManyRejectsError
from clipcap.layout import Run, Shard

_EXAMPLES: Final = 3
_SHOWN_REASONS: Final = 5


def require_few_rejects(
    run: Run, *, max_reject_rate: float, retired: Collection[Shard] = ()
) -> None:
    """Stop before any model work if too many images of the shards not yet published were rejected.

    Shards of an earlier night that stopped here count again, so a rerun does not slip through; but
    what this night's plan takes out of the `retired` shards does not: the source was mended.

    Raises:
        TooManyRejectsError: says the share, the reasons and the first examples.
    """
    told = published(run.out)
    rejected: Counter[str] = Counter()
    examples: list[str] = []
    taken = 0
    for shard in manifest.shards(run.out):
        if layout.manifest(run.out, shard) in told:
            continue
        found = commits.find(layout.manifest(run.out, shard))
        gone, mended = plans.read_retirement(run, shard) if shard in retired else ([], [])
        taken += found.rows - len(gone) if found else 0
        columns = ["source_uri", "reason", "image_id"]
        for row in manifest.read_rejects(run.out, shard).select(columns).to_pylist():
            if row["image_id"] in mended:
                continue
            rejected[row["reason"]] += 1
            if len(examples) < _EXAMPLES:
                examples.append(f"{row['source_uri']} ({row['reason']})")
    count = rejected.total()
    if count and count > max_reject_rate * (taken + count):
        raise TooManyRejectsError(_sentence(count, taken, rejected, examples, max_reject_rate))


def published(out: str) -> dict[str, str]:
    """Return the objects that the newest whole run told readers of: URL to fingerprint.

    Raises:
        DamagedError: what names them cannot be read.
    """
    try:
        latest = json.loads(storage.read(layout.latest(out)))
        listed = json.loads(storage.read(layout.run_manifest(out, latest["run_id"])))
        return {
            f"{out}/{found['url']}": found["fingerprint"]
            for found in listed["objects"]
            if "fingerprint" in found
        }
    except NotFoundError:
        return {}
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(
            f"_latest.json of {out} and the list that it names must be whole JSON, but cannot be "
            f"read: {error!r}. `clipcap verify {out} --repair` mends them."
        ) from error


def _sentence(
    count: int, taken: int, rejected: Counter[str], examples: list[str], limit: float
) -> str:
    by_reason = ", ".join(f"{name} {n}" for name, n in rejected.most_common(_SHOWN_REASONS))
    shown = "\n  ".join(examples)
    return (
        f"Stopped: {count / (taken + count):.0%} of {taken + count} new files were rejected (limit "
        f"{limit:.0%}): {by_reason}. Are these pictures? First ones:\n  {shown}\n"
        "What was taken in is kept, nothing is published. Mend the source, or allow more with "
        "--max-reject-rate, and run again."
    )
