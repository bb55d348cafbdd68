"""The objects of an output in, the list of them that readers are told of out, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from clipcap import layout, leases, storage
from clipcap.commits import Commit
from clipcap.errors import DamagedError, NotFoundError, SettingsError
from clipcap.layout import Run
from clipcap.storage import ObjectInfo

Entry = Mapping[str, Any]
"""One object: `url` below the output, `etag`, `size_bytes`; of a table `rows`, `fingerprint`, and
the `SIGNED` and `TAR` of its footer."""
SIGNED: Final = ("recipe", "members", "model_sha256")
"""What of a footer tells whether an object is the wanted one."""
TAR: Final = ("tar", "tar_etag")
"""Where images lie that were left in the source."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the newest whole run told readers of: `objects` by their path below the output."""

    run_id: str
    dt: str
    objects: Mapping[str, Entry]


def newest(out: str) -> Snapshot | None:
    """Return the newest snapshot; None where no run was ever published.

    Raises:
        SettingsError: `_latest.json` names a list that is not there.
        DamagedError: one of both cannot be read.
    """
    try:
        with _whole(layout.latest(out)):
            latest = json.loads(storage.read(layout.latest(out)))
            run_id = str(latest["run_id"])
    except NotFoundError:
        return None
    try:
        objects = listed(out, run_id)
    except NotFoundError as error:
        raise SettingsError(
            f"{out}/_latest.json names the list of the run {run_id}, but the list is not there: "
            "the output is not whole. `clipcap verify` says what else is missing; the next whole "
            "night writes a new one."
        ) from error
    return Snapshot(run_id, str(latest.get("dt", "")), objects)


def listed(out: str, run_id: str) -> dict[str, Entry]:
    """Return the objects that a run told readers of, by their path below the output.

    Raises:
        NotFoundError: there is no such list.
        DamagedError: it cannot be read.
    """
    url = layout.run_manifest(out, run_id)
    with _whole(url):
        found = json.loads(storage.read(url))
        return {str(one["url"]): one for one in found["objects"]}


@contextmanager
def _whole(url: str) -> Iterator[None]:
    """Say of an object what to do where what is inside cannot make sense of it."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(
            f"{url} must be a whole list of objects, or name one, but cannot be read: {error!r}. "
            "In an output, `clipcap verify OUT --repair` mends that of the newest run; an older "
            "one may be removed."
        ) from error


def entry(found: ObjectInfo, commit: Commit | None = None, *, out: str) -> Entry:
    """Return what a list says of one object; of a tar there is no commit."""
    url = found.url.removeprefix(f"{out}/")
    said: dict[str, Any] = {"url": url, "etag": found.etag, "size_bytes": found.size_bytes}
    if commit is None:
        return said
    signed = {"rows": commit.rows, "fingerprint": commit.fingerprint}
    return (
        said
        | signed
        | {name: commit.metadata[name] for name in (*SIGNED, *TAR) if name in commit.metadata}
    )


def publish(run: Run, objects: Iterable[Entry]) -> str:
    """Tell readers of a list of objects; return its URL.

    Raises:
        LeaseError: another run works on the output by now; then it tells them.
    """
    leases.require(run.out)
    listing = layout.run_manifest(run.out, run.run_id)
    _write(listing, {"run_id": run.run_id, "objects": list(objects)})
    path = listing.removeprefix(f"{run.out}/")
    _write(layout.latest(run.out), {"run_id": run.run_id, "manifest": path, "dt": run.dt})
    storage.write(layout.success(run.out), b"")
    return listing


def _write(url: str, value: Mapping[str, Any]) -> None:
    storage.write(url, (json.dumps(value, indent=1) + "\n").encode())
