"""The rejects of a night in; groups by reason, with examples and what to do about each, out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc

from clipcap import manifest
from clipcap.errors import Reason
from clipcap.layout import Run, Shard

EXAMPLES: Final = 20
"""Examples shown of one reason."""
_COLUMNS: Final = ("source_uri", "reason", "stage", "retryable", "error_message", "source_bytes")

ADVICE: Final[dict[Reason, str]] = {
    "not_found": "The source listed it, but it was gone when it was read. If it was deleted "
    "meanwhile, there is nothing to do.",
    "access_denied": "Give the pipeline's key the right to read these; the next night tries again.",
    "timeout": "The store did not answer in time; the next night tries again.",
    "empty_file": "The file has no bytes: upload it again.",
    "not_an_image": "No image by its content, whatever the name says. Leave it out with a narrower "
    "glob, or upload the image.",
    "truncated": "The file ends early, as after a broken upload: upload it again.",
    "decode_failed": "The file is damaged: save it again from the original.",
    "unsupported_format": "Convert it to JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF.",
    "decompression_bomb": "More pixels than the limit. Scale it down, or raise images.max_pixels.",
    "too_small": "A side is under the limit. If such small images count, lower images.min_side_px.",
    "too_large": "More bytes than the limit. Scale it down, or raise images.max_bytes.",
    "bad_sidecar": "Its caption file is not UTF-8 text or JSON: mend or remove that file.",
    "duplicate_key": "Another image of its shard has the same key. Rename one of the two.",
    "opted_out": "Its owner asked for it to be left out.",
    "oom": "Decoding needed more memory than there was; the next night tries again.",
    "model_error": "The model gave no finite embedding; the next night tries again.",
    "caption_empty": "The captioner said nothing; another one may do better.",
}


@dataclass(slots=True)
class Group:
    """Rejects of one reason; the examples are the first ones."""

    reason: str
    retryable: bool
    count: int
    examples: list[dict[str, Any]]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return next((text for reason, text in ADVICE.items() if reason == self.reason), "")


def groups(run: Run, shards: Iterable[Shard]) -> list[Group]:
    """Return what this run rejected in these shards, the most frequent reason first."""
    found: dict[str, Group] = {}
    for shard in shards:
        table = manifest.read_rejects(run.out, shard)
        mine = table.filter(pc.equal(table["run_id"], run.run_id)).select(_COLUMNS)
        for row in mine.to_pylist():
            group = found.setdefault(row["reason"], Group(row["reason"], row["retryable"], 0, []))
            group.count += 1
            if len(group.examples) < EXAMPLES:
                group.examples.append(row)
    return sorted(found.values(), key=lambda group: (-group.count, group.reason))
