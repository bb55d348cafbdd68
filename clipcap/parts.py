"""A shard's objects in, the shard with its tables as one that may be merged out, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from clipcap import commits, layout, manifest
from clipcap.commits import Commit
from clipcap.layout import Shard
from clipcap.settings import digest
from clipcap.storage import ObjectInfo

_CHAINED: Final = ("embeddings", "captions", "labels")


@dataclass(frozen=True, slots=True)
class Part:
    """A shard that may be merged: its manifest, and its tables by their folder."""

    shard: Shard
    live: Commit
    tables: Mapping[str, Commit]
    tar_bytes: int

    @property
    def images(self) -> int:
        """How many live images it has."""
        return self.live.rows

    @property
    def members(self) -> str:
        """The digest of its live images."""
        return self.live.metadata["members"]

    @property
    def kind(self) -> str:
        """What shards must have in common to be merged: source, tables, and how these were made."""
        made = [[url, one.recipe, one.metadata.get("review", "")] for url, one in self._made()]
        return digest([self.live.metadata["source"], made])

    def _made(self) -> list[tuple[str, Commit]]:
        return sorted(self.tables.items())


def part_of(out: str, shard: Shard, objects: Mapping[str, ObjectInfo]) -> Part | None:
    """Return a shard that may be merged, by the paths of its objects below the output.

    None: its images lie in a tar of the source, or its tables are not of its live images, which
    the next night mends.
    """
    live = commits.find(layout.manifest(out, shard))
    if live is None or manifest.source_tar(live.metadata) or live.recipe != manifest.recipe():
        return None
    tar = objects.get(layout.tar("", shard).lstrip("/"))
    if live.rows and tar is None:
        return None
    found: dict[str, Commit] = {}
    for path in objects:
        if path.startswith(_CHAINED):
            one = commits.find(f"{out}/{path}")
            if one is None or one.metadata.get("members") != live.metadata["members"]:
                return None
            found[layout.folder_of(path)] = one
    return Part(shard, live, found, tar.size_bytes if tar else 0)
