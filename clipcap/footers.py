"""Folders of tables in, what the footers of their objects say out; of most of them unread.

An object that has the etag under which the newest list names it is the one that was listed, and the
list says what its footer says. After years of nights that is nearly every object: one page of a
listing stands for a thousand small reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from clipcap import ahead, commits, layout, manifest, snapshots, storage
from clipcap.commits import Commit
from clipcap.errors import SettingsError
from clipcap.layout import PER_SHARD, Shard
from clipcap.snapshots import Entry
from clipcap.storage import ObjectInfo


class Footers:
    """What is known of the footers of an output; each object is asked once in each version."""

    def __init__(self, out: str) -> None:
        """Read the newest list; where there is none, every object will be asked.

        Args:
            out: canonical URL of the output.

        Raises:
            StorageError: it cannot be read.
        """
        self._out = out
        self._known: dict[str, tuple[str, Commit]] = {}
        try:
            told = snapshots.newest(out)
        except (SettingsError, ValueError, LookupError, TypeError):  # half an output
            told = None
        for path, one in told.objects.items() if told else ():
            if found := _listed(f"{out}/{path}", one):
                self._known[found.url] = (one["etag"], found)

    def commits(self, infos: Iterable[ObjectInfo]) -> Iterator[tuple[ObjectInfo, Commit | None]]:
        """Yield objects with what their footers say, in order; None of one that is gone by now.

        Of one that was not read, `metadata` has no more than the list.
        """
        yield from ahead.mapped(self._asked, infos, threads=storage.IN_FLIGHT)

    def of(self, folder: str, only: Collection[Shard] | None = None) -> dict[Shard, Commit]:
        """Return what the footers of a table's folder (that of one model, for example) say.

        `only`: of these shards; what others have left may be damaged, and goes.
        """
        ours = (
            info
            for info in storage.listed(folder)
            if self._is_ours(info) and (only is None or layout.shard_of(info.url) in only)
        )
        return {layout.shard_of(info.url): found for info, found in self.commits(ours) if found}

    def entries(self) -> list[Entry]:
        """Return every object of every table, with etag, size and footer; then the tars.

        Beside a manifest stands the tar of the source that its images were left in.
        """
        found: list[Entry] = []
        for name in PER_SHARD:
            ours = filter(self._is_ours, manifest.objects(self._out, name))
            for info, commit in self.commits(ours):
                if commit is not None:
                    found.append(snapshots.entry(info, commit, out=self._out))
        tars = storage.listed(layout.tars(self._out))
        return [*found, *(snapshots.entry(info, out=self._out) for info in tars)]

    def _is_ours(self, info: ObjectInfo) -> bool:
        return layout.is_of_shard(info.url.removeprefix(f"{self._out}/"))

    def _asked(self, info: ObjectInfo) -> tuple[ObjectInfo, Commit | None]:
        etag, known = self._known.get(info.url, ("", None))
        if known is not None and etag == info.etag:
            return info, known
        found = commits.find(info.url)
        if found is not None:
            self._known[info.url] = (info.etag, found)
        return info, found


def _listed(url: str, said: Mapping[str, object]) -> Commit | None:
    """Return what a list says of an object's footer; None of one that says too little."""
    if not {"rows", "fingerprint", *snapshots.SIGNED[:2]} <= said.keys():
        return None
    metadata = {
        name: str(said[name]) for name in (*snapshots.SIGNED, *snapshots.TAR) if name in said
    }
    rows = said["rows"]
    if not isinstance(rows, int):
        return None
    return Commit(url, rows, str(said["fingerprint"]), metadata["recipe"], metadata)
