"""Folders of tables in, what the footers of their objects say out; of most of them unread.

An object that has the etag under which the newest list names it is the one that was listed, and the
list says what its footer says. After years of nights that is nearly every object: one page of a
listing stands for a thousand small reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from clipcap import ahead, commits, layout, manifest, snapshots, storage
from clipcap.commits import Commit
from clipcap.errors import DamagedError, SettingsError
from clipcap.layout import PER_SHARD, Shard
from clipcap.snapshots import Entry
from clipcap.storage import ObjectInfo


class Footers:
    """What is known of the footers of an output; each object is asked once in each version.

    But those that `commits` gave to a caller, where the store tells no time.
    """

    def __init__(self, out: str) -> None:
        """Read the newest list; where there is none, every object will be asked.

        Args:
            out: canonical URL of the output.

        Raises:
            StorageError: it cannot be read.
        """
        self._out = out
        self._listed: dict[str, tuple[str, Commit]] = {}
        self._read: dict[str, tuple[str, Commit]] = {}
        try:
            told = snapshots.newest(out)
        except (SettingsError, DamagedError):  # half an output: nothing is known
            told = None
        for path, one in told.objects.items() if told else ():
            if found := _listed(f"{out}/{path}", one):
                self._listed[found.url] = (one["etag"], found)

    def commits(self, infos: Iterable[ObjectInfo]) -> Iterator[tuple[ObjectInfo, Commit | None]]:
        """Yield objects with what their footers say, in order; None of one that is gone by now.

        Of one that was not read, `metadata` has no more than the list. The caller may write what
        it is given anew: where a store tells no time, the same size looks the same, so that one is
        asked again later.
        """
        for info, found in self._said(infos):
            if info.modified_at is None:
                self._read.pop(info.url, None)
            yield info, found

    def of(self, folder: str, only: Collection[Shard] | None = None) -> dict[Shard, Commit]:
        """Return what the footers of a table's folder (that of one model, for example) say.

        `only`: of these shards; what others have left may be damaged, and goes.
        """
        ours = (
            info
            for info in storage.listed(folder)
            if self._is_ours(info) and (only is None or layout.shard_of(info.url) in only)
        )
        return {layout.shard_of(info.url): found for info, found in self._said(ours) if found}

    def entries(self) -> list[Entry]:
        """Return every object of every table, with etag, size and footer; then the tars.

        Rejects that stand without a manifest are nobody's: a try that died left them, and the next
        run removes them before it publishes.

        Beside a manifest stands the tar of the source that its images were left in.
        """
        found: list[Entry] = []
        counts: set[Shard] = set()
        for name in PER_SHARD:
            ours = list(filter(self._is_ours, manifest.objects(self._out, name)))
            if name == "manifest":
                counts.update(layout.shard_of(info.url) for info in ours)
            if name == "rejects":
                ours = [info for info in ours if layout.shard_of(info.url) in counts]
            for info, commit in self._said(ours):
                if commit is not None:
                    found.append(snapshots.entry(info, commit, out=self._out))
        tars = storage.listed(layout.tars(self._out))
        return [*found, *(snapshots.entry(info, out=self._out) for info in tars)]

    def _is_ours(self, info: ObjectInfo) -> bool:
        return layout.is_of_shard(info.url.removeprefix(f"{self._out}/"))

    def _said(self, infos: Iterable[ObjectInfo]) -> Iterator[tuple[ObjectInfo, Commit | None]]:
        yield from ahead.mapped(self._asked, infos, threads=storage.IN_FLIGHT)

    def _asked(self, info: ObjectInfo) -> tuple[ObjectInfo, Commit | None]:
        known = self._read.get(info.url)
        if known is None and info.modified_at is not None:
            known = self._listed.get(info.url)  # without a time an etag may be no more than a size
        if known is not None and known[0] == info.etag:
            return info, known[1]
        found = commits.find(info.url)
        if found is not None:
            self._read[info.url] = (info.etag, found)
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
