"""A table in, a commit out: one whole object whose footer says what it was made from.

An object counts when it is there and its fingerprint is the wanted one. `recipe` is the part of the
fingerprint that does not depend on which images are in the shard: rows of an object of the same
recipe are reused by content digest, so that one replaced image costs one forward pass.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import pyarrow as pa

import clipcap
from clipcap import storage, tables
from clipcap.errors import NotFoundError, SettingsError
from clipcap.settings import digest

PRODUCER: Final = f"clipcap {clipcap.__version__}"
_OWN: Final = ("producer", "run_id", "git_commit", "fingerprint", "recipe", "members")
"""What every object says of itself alone."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an object is made from: `recipe` (model, settings, version) over `members` (images)."""

    recipe: str
    members: str
    review: str = ""
    """What captions are judged by; another text judges rows anew that are kept."""

    @property
    def value(self) -> str:
        """The digest that stands in the footer."""
        return digest([self.recipe, self.members, *([self.review] if self.review else [])])


@dataclass(frozen=True, slots=True)
class Commit:
    """An object that counts."""

    url: str
    rows: int
    fingerprint: str
    recipe: str
    metadata: Mapping[str, str]
    sha256: str = ""
    """Of the object's bytes; empty where only its footer was read."""


def find(url: str) -> Commit | None:
    """Return the commit at `url`, whatever its fingerprint, or None; one small ranged read."""
    try:
        metadata, rows = tables.footer(url)
    except NotFoundError:
        return None
    return Commit(url, rows, metadata.get("fingerprint", ""), metadata.get("recipe", ""), metadata)


def made_from(out: str, folder: str, name: str) -> list[str]:
    """Return the URLs of the tables in a folder of the caller's, all of them made from an output.

    `name` is what the footers of such tables have the output's URL as: `choices_of`.

    Raises:
        SettingsError: there is something else.
    """
    found = [one.url for one in storage.listed(folder) if one.url.endswith(".parquet")]
    for url in found:
        there = find(url)
        if there is not None and there.metadata.get(name) != out:
            raise SettingsError(
                f"The {name.removesuffix('_of')} for {out} must have a folder of their own, but "
                f"{url} is something else. Name another folder."
            )
    return found


def publish(
    url: str, table: pa.Table, *, fingerprint: Fingerprint, run_id: str, metadata: Mapping[str, str]
) -> Commit:
    """Write a whole table in one atomic step, its fingerprint in the footer."""
    signed = {
        "producer": PRODUCER,
        "run_id": run_id,
        "git_commit": git_commit(),
        "fingerprint": fingerprint.value,
        "recipe": fingerprint.recipe,
        **({"review": fingerprint.review} if fingerprint.review else {}),
        **metadata,
    }
    data = tables.to_bytes(table, signed)
    storage.write(url, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return Commit(url, table.num_rows, fingerprint.value, fingerprint.recipe, signed, sha256)


def republish(made: Commit, url: str, table: pa.Table, *, members: str, run_id: str) -> Commit:
    """Write rows that were made as those of a commit, for other members; nothing is computed."""
    signed = {name: text for name, text in made.metadata.items() if name not in _OWN}
    return publish(
        url,
        table,
        fingerprint=Fingerprint(made.recipe, members, made.metadata.get("review", "")),
        run_id=run_id,
        metadata=signed | {"members": members},
    )


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Return the running code's git commit: from CLIPCAP_GIT_COMMIT, or the checkout, or empty."""
    if named := os.environ.get("CLIPCAP_GIT_COMMIT"):
        return named
    folder = Path(clipcap.__file__).parent.parent / ".git"
    try:
        head = (folder / "HEAD").read_text().strip()
        return _commit_of(folder, head[5:]) if head.startswith("ref: ") else head
    except OSError:
        return ""


def _commit_of(folder: Path, branch: str) -> str:
    """Return the commit of a branch: from its own file, or from the list that `git gc` makes."""
    if (folder / branch).is_file():
        return (folder / branch).read_text().strip()
    pairs = (line.partition(" ") for line in (folder / "packed-refs").read_text().splitlines())
    return next((commit for commit, _, name in pairs if name == branch), "")
