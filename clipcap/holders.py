"""An output in; who holds its lease, or held it last, and their last sign of life, out.

The objects are `_lease/000000000001.json` and so on; the one of the highest number holds.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from clipcap import layout, processes, storage
from clipcap.errors import NotFoundError

OWN: Final[set[str]] = set()
"""The tokens of the leases that this process holds or tries to take."""
_NUMBER: Final = re.compile(r"(\d{1,18})\.json")


class Holder(BaseModel):
    """What a lease says of who took it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    what: str
    run_id: str
    host: str
    pid: int
    life: str
    """Of the process, as `clipcap.processes` names it."""
    token: str
    since: AwareDatetime
    seen: AwareDatetime
    """The last sign of life, by the holder's clock."""
    beats: int = 0
    released: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether nobody holds this any more, for certain."""
        own = self.life == processes.life() != ""
        return self.released or processes.is_over(self.life) or (own and self.token not in OWN)

    def __str__(self) -> str:
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"{self.what} (run {self.run_id}, process {self.pid} on {self.host}, since {since})"


@dataclass(frozen=True, slots=True)
class Found:
    """The lease of the highest number; `holder` is None where this version cannot read it."""

    number: int
    etag: str
    holder: Holder | None

    def __str__(self) -> str:
        if self.holder is None:
            return "something that this version of clipcap cannot read"
        return str(self.holder)

    @property
    def quiet_s(self) -> float:
        """Seconds since the last sign of life by the clocks, which may be wrong; NaN if unknown."""
        if self.holder is None:
            return float("nan")
        return (datetime.now(UTC) - self.holder.seen).total_seconds()


def newest(out: str) -> Found | None:
    """Return the lease of the highest number, released or not; None: there never was one."""
    while (top := highest(out)) is not None:
        with suppress(NotFoundError):  # removed meanwhile: there is a higher one
            return Found(*top, _parsed(storage.read(layout.lease(out, top[0]))))
    return None


def highest(out: str) -> tuple[int, str] | None:
    """Return number and etag of the highest lease; None: there is none."""
    return max(numbers(out).items(), default=None)


def numbers(out: str) -> dict[int, str]:
    """Return the etags of all leases that are there, by number."""
    return {
        int(name[1]): found.etag
        for found in storage.listed(layout.leases(out))
        if (name := _NUMBER.fullmatch(found.url.rpartition("/")[2]))
    }


def written(holder: Holder) -> bytes:
    """Return a holder as the object says it."""
    return (holder.model_dump_json(indent=1) + "\n").encode()


def _parsed(data: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(data)
    except ValidationError:
        return None


def myself(what: str, run_id: str) -> Holder:
    """Return this process as a holder, from now on."""
    now = datetime.now(UTC)
    return Holder(
        what=what,
        run_id=run_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        life=processes.life(),
        token=secrets.token_hex(8),
        since=now,
        seen=now,
    )
