"""A text in, the one URL of a place out: absolute, without credentials; and its parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from clipcap import credentials
from clipcap.errors import SettingsError

WEB: Final = ("http", "https")
_AZURE: Final = ("abfs", "abfss")


def canonical(url: str) -> str:
    """Return the one URL of a place: absolute, without credentials, without a slash at the end.

    Raises:
        SettingsError: the URL carries a user name, a password or a signature.
    """
    protocol, found, _ = url.partition("://")
    is_signed = credentials.carries if protocol in WEB else credentials.is_signed
    if found and protocol != "file" and is_signed(url):
        raise SettingsError(credentials.REFUSAL)
    url = exact(url)
    return url if url.startswith(WEB) else url.rstrip("/")  # there it is another page


def exact(url: str) -> str:
    """Return the absolute URL of one object: a key may look like a signature, or end in a slash.

    Raises:
        SettingsError: the URL carries a user name or a password.
    """
    protocol, found, rest = url.partition("://")
    if credentials.has_login(url) or (protocol in WEB and credentials.is_signed(rest)):
        raise SettingsError(credentials.REFUSAL)
    if not found:
        return of_path(os.path.abspath(os.path.expanduser(url)))
    if protocol == "file":
        return exact(os.fsdecode(unquote_to_bytes(rest)))
    if protocol in _AZURE:
        return exact(_of_azure(rest))
    return f"memory://{rest.lstrip('/')}" if protocol == "memory" else url


def _of_azure(rest: str) -> str:
    """Return the address of a container in its short form, whose account the environment names."""
    name, _, key = rest.partition("/")
    container, is_long, _ = name.partition("@")
    if is_long:
        raise SettingsError(
            "An address of Azure must not name the account: say "
            f"{credentials.without(f'az://{container}/{key}')} and set AZURE_STORAGE_ACCOUNT_NAME."
        )
    return f"az://{rest}"


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


def prefixes(folders: str | Sequence[str]) -> tuple[str, ...]:
    """Return what canonical URLs begin with that lie below a folder, or below one of several."""
    several = (folders,) if isinstance(folders, str) else folders
    return tuple(f"{canonical(one)}/" for one in several if one)
