"""An output in; the objects of each shard, all others, and what readers were told of, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from clipcap import layout, snapshots, storage
from clipcap.errors import ClipcapError, NotFoundError, SettingsError
from clipcap.layout import Shard
from clipcap.snapshots import Snapshot
from clipcap.storage import ObjectInfo

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Holdings:
    """What lies in an output: objects by their path below it, those of a shard apart."""

    out: str
    by_shard: Mapping[Shard, Mapping[str, ObjectInfo]]
    others: Mapping[str, ObjectInfo]
    told: Snapshot
    told_by_shard: Mapping[Shard, Mapping[str, str]]
    """Path to etag, of what the newest whole run told readers of."""

    def is_live(self, shard: Shard) -> bool:
        """Tell whether a shard counts."""
        return layout.manifest("", shard)[1:] in self.by_shard.get(shard, {})

    def is_told(self, shard: Shard) -> bool:
        """Tell whether a shard stands just as readers were told of it."""
        stands = {path: info.etag for path, info in self.by_shard.get(shard, {}).items()}
        return stands == self.told_by_shard.get(shard)

    @property
    def live(self) -> list[Shard]:
        """Every shard that counts, oldest first."""
        return sorted(filter(self.is_live, self.by_shard))


def held(out: str) -> Holdings:
    """Return what lies in an output, sure that readers find all that they were told of.

    Raises:
        NotFoundError: there is no output.
        SettingsError: no run was ever published.
        ClipcapError: what the newest whole run told of is not there.
    """
    try:
        listed = list(storage.list_objects(out))  # first: what is told later, was there earlier
    except NotFoundError as error:
        raise NotFoundError(f"There is no output at {out}. Is the address right?") from error
    by_shard: dict[Shard, dict[str, ObjectInfo]] = {}
    others: dict[str, ObjectInfo] = {}
    for info in listed:
        path = info.url.removeprefix(f"{out}/")
        if layout.is_of_shard(path):
            by_shard.setdefault(layout.shard_of(path), {})[path] = info
        else:
            others[path] = info
    told = snapshots.newest(out)
    if told is None:
        raise SettingsError(
            f"{out} must be an output that a whole run has published, but has no `_latest.json`. "
            "Nothing was changed. Is the address right? `clipcap run SOURCE OUT` makes one."
        )
    told_by_shard: dict[Shard, dict[str, str]] = {}
    for path, entry in told.objects.items():
        told_by_shard.setdefault(layout.shard_of(path), {})[path] = str(entry["etag"])
    found = Holdings(out, by_shard, others, told, told_by_shard)
    _require_whole(found)
    return found


def _require_whole(found: Holdings) -> None:
    missing = [
        path
        for shard, paths in found.told_by_shard.items()
        for path in paths
        if path not in found.by_shard.get(shard, {}) and not storage.info(f"{found.out}/{path}")
    ]
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        raise ClipcapError(
            f"The output is not whole: {len(missing)} objects that the newest whole run "
            f"({found.told.run_id}) told of are not there, such as {shown}. Nothing was changed. "
            "Let a night finish, or see `clipcap verify`."
        )
