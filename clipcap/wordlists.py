"""The address of a list of words in, its words out: a text file, UTF-8, one word or phrase a line.

Needs no torch: a stage asks for the digest of a list before it knows whether it has work.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from clipcap import storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.settings import digest

NAME = "only"
"""The setting of a decoder that may name such a file."""


def read(address: str) -> tuple[str, ...]:
    """Return the words of a file, each once; empty lines are nothing.

    Raises:
        SettingsError: it is not there, not UTF-8, or has no word.
    """
    try:
        lines = storage.read(storage.canonical(address)).decode("utf-8-sig").splitlines()
    except NotFoundError as error:
        raise SettingsError(f"The list of words {address} is not there.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The list of words {address} must be UTF-8, one word a line, but is not: {error}."
        ) from error
    words = tuple(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not words:
        raise SettingsError(f"The list of words {address} has no word.")
    return words


def digests(settings: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return the digest of the list that a decoder's settings name; nothing if they name none.

    Raises:
        SettingsError: it cannot be read.
    """
    address = settings.get(NAME)
    return {NAME: digest(read(address))} if isinstance(address, str) and address else {}
