"""Embeddings of labelled images out of an output; a fitted label set in, its file out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import storage, tables
from clipcap.commits import Commit
from clipcap.errors import SettingsError
from clipcap.labels import bank
from clipcap.labels.bank import Bank
from clipcap.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

T = TypeVar("T", bound=Settings)
_NAME: Final = re.compile(r"(^|/)(?![._-]+\.parquet$)[A-Za-z0-9._-]{1,60}\.parquet$")


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images that people said something of."""

    embedding_ND: Floats
    labels_N: Sequence[frozenset[int]]
    """Indices of the labels of each; empty: none of these."""
    missing: int = 0
    """Images that have no embedding, and are not among them."""


@dataclass(frozen=True, slots=True)
class Fitted(Generic[T]):
    """A label set that was fitted or learnt, what is known of that, and what was not used."""

    bank: Bank
    told: T
    missing_images: int = 0
    """Images of the truth that the output does not have, that are not embedded, or of which only a
    group or a label that is left out is known."""
    unknown_labels: int = 0
    """Labels of the truth that the set does not have."""

    def everything(self) -> dict[str, Any]:
        """Return what is known, for machines."""
        unused = {"missing_images": self.missing_images, "unknown_labels": self.unknown_labels}
        return self.told.model_dump(mode="json") | unused


def labelled(
    commits_S: Sequence[Commit], image_ids: Sequence[str], labels_N: Sequence[frozenset[int]]
) -> Labelled:
    """Return the embeddings of images of a truth.

    Raises:
        SettingsError: none of them is embedded.
    """
    wanted, parts, found = pa.array(image_ids, pa.string()), [], []
    for one in commits_S:
        table = tables.read(one.url, ["image_id", "embedding"])
        table = table.filter(pc.is_in(table["image_id"], value_set=wanted))
        if table.num_rows:
            parts.append(tables.vectors(table))
            found += table["image_id"].to_pylist()
    labels = dict(zip(image_ids, labels_N, strict=True))
    if not found:
        raise SettingsError("Images of the truth must be embedded, but none is. Embed them first.")
    missing = len(labels) - len(found)
    return Labelled(np.concatenate(parts), [labels[one] for one in found], missing)


def name(url: str) -> str:
    """Return what a fitted label set is called in a file of this name.

    Raises:
        SettingsError: it may not be called so.
    """
    if not _NAME.search(url):
        raise SettingsError(
            f"A fitted label set must end in {bank.FITTED} and have a name of letters, digits, "
            f"`.`, `_` and `-`, 60 at most, as mine{bank.FITTED}, but {url} does not."
        )
    return url.rpartition("/")[2].removesuffix(bank.FITTED)


def write(made: Bank, url: str) -> None:
    """Write a fitted label set, whole or not at all; it is called as its file is.

    Raises:
        SettingsError: the name does not end as a fitted label set must.
    """
    label_set = made.label_set.model_copy(update={"name": name(url)})
    storage.write(storage.canonical(url), bank.to_bytes(replace(made, label_set=label_set)))
