"""A text in, the one URL of a place out: absolute, without credentials; and its parts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from clipcap.errors import SettingsError

_SIGNED: Final = re.compile(r"[?&](X-(Amz|Goog)-(Signature|Credential)|Signature|sig)=", re.I)
_SIGNATURE: Final = re.compile(rf"({_SIGNED.pattern})[^&\s\"]*", re.I)
_KEYS: Final = re.compile(r"://[^/\s\"@]*@")
WEB: Final = ("http", "https")
_NO_CREDENTIALS: Final = (
    "A URL must not carry credentials or a signature; set them in the environment instead "
    "(for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)."
)


def canonical(url: str) -> str:
    """Return the one URL of a place: absolute, without credentials, without a slash at the end.

    Raises:
        SettingsError: the URL carries a user name, a password or a signature.
    """
    protocol, found, rest = url.partition("://")
    if found and protocol != "file" and _SIGNED.search(rest):
        raise SettingsError(_NO_CREDENTIALS)
    url = exact(url)
    return url if url.startswith(WEB) else url.rstrip("/")  # there it is another page


def exact(url: str) -> str:
    """Return the absolute URL of one object: a key may look like a signature, or end in a slash.

    Raises:
        SettingsError: the URL carries a user name or a password.
    """
    protocol, found, rest = url.partition("://")
    if not found:
        return of_path(os.path.abspath(os.path.expanduser(url)))
    if protocol == "file":
        return exact(os.fsdecode(unquote_to_bytes(rest)))
    if "@" in rest.partition("/")[0] or (protocol in WEB and _SIGNED.search(rest)):
        raise SettingsError(_NO_CREDENTIALS)
    return f"memory://{rest.lstrip('/')}" if protocol == "memory" else url


def without_credentials(text: str) -> str:
    """Return a text with `***` for every key, password and signature in the URLs it holds."""
    return _SIGNATURE.sub(r"\1***", _KEYS.sub("://***@", text))


def of_path(path: str) -> str:
    """Return the URL of an absolute path of this machine."""
    return "file://" + quote_from_bytes(os.fsencode(path), safe="/=:@!$&'()*+,;")


def local_path(url: str) -> Path | None:
    """Return the path of a local URL, and None for a URL on a store."""
    url = exact(url)
    return path_of(url) if url.startswith("file://") else None


def path_of(url: str) -> Path:
    """Return the path of a `file://` URL."""
    return Path(os.fsdecode(unquote_to_bytes(url.removeprefix("file://"))))


def name_below(url: str, folder: str) -> str:
    """Return an object's path below a folder as a person would write it (both URLs canonical)."""
    name = url.removeprefix(folder).lstrip("/")
    return os.fsdecode(unquote_to_bytes(name)) if url.startswith("file://") else name
