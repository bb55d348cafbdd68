"""A URL in; what its store makes of a write that must be the first one out: honours, refuses, lies.

"S3-compatible" does not tell: Ceph honours it, but not in a versioned bucket, where it answers 200
and overwrites; Swift refuses it. So it is tried, on the very bucket, each time it matters.
"""

from __future__ import annotations

import secrets
from typing import Final, Literal

from clipcap import storage
from clipcap.errors import (
    AccessDeniedError,
    NotFoundError,
    SettingsError,
    StorageError,
    TransientStorageError,
)

Promise = Literal["honours", "refuses", "lies"]
"""What a store does with a second first write: it says no, knows no such thing, says yes."""

MEANING: Final[dict[Promise, str]] = {
    "honours": "keeps writes apart that must be the first",
    "refuses": "knows no writes that must be the first",
    "lies": "says yes to every write that must be the first, and overwrites",
}


def kind(out: str) -> Promise:
    """Put, put again and delete a small object below `out`: may one write there, and how surely?

    Raises:
        StorageError: one may not write there.
    """
    probe = f"{storage.canonical(out)}/_probe-{secrets.token_hex(4)}"
    found = first(probe, b"clipcap was here to see whether it may write\n")
    if found == "honours" or found == "lies":
        storage.delete(probe)
        return found
    storage.require_writable(out)
    return "refuses"


def first(url: str, data: bytes) -> Promise | Literal["taken"]:
    """Write an object twice where there was none, if the store lets that happen.

    It is there afterwards unless the store `refuses`; `taken`: it was there before.

    Raises:
        StorageError: the store lets nobody write there, or says "later".
    """
    try:
        if not storage.create(url, data):
            return "taken"
        return "lies" if storage.create(url, data) else "honours"
    except (AccessDeniedError, NotFoundError, TransientStorageError):
        raise
    except StorageError:  # of the condition, or of any write: a plain one will tell
        return "refuses"


def require(out: str, what: str) -> None:
    """Refuse what is right only where the store keeps writes apart.

    Raises:
        SettingsError: the store of `out` does not.
        StorageError: one may not write there.
    """
    if (found := kind(out)) != "honours":
        versioned = " Buckets that keep versions do so on some servers." if found == "lies" else ""
        raise SettingsError(
            f"{what} needs a store that {MEANING['honours']} (PUT with `If-None-Match: *`), but "
            f"that of {storage.without_credentials(out)} {MEANING[found]}.{versioned} Use another "
            "bucket, or do without; all else works here."
        )
