"""A data file of the original ClipCap in, embeddings and the captions of each out.

`parse_coco.py` and `parse_conceptual.py` of rmokady/CLIP_prefix_caption write pickles
(`oscar_split_ViT-B_32_train.pkl`), which its `train.py` would have run; here they are only read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from clipcap import pickledtensors, storage
from clipcap.errors import SettingsError

log = logging.getLogger(__name__)

EMBEDDINGS: Final = "clip_embedding"
"""The key of all embeddings, and in a caption's own dict the key of its row."""
CAPTIONS: Final = "captions"
_PICKLE: Final = 0x80


class Caption(NamedTuple):
    """One caption of a row."""

    text: str
    """As a person wrote it; may be empty."""
    image_id: str
    """Which image; in the files made of COCO several rows are of one image."""


class Image(NamedTuple):
    """One image of a file: in those made of COCO, of several equal rows."""

    name: str
    """Its `image_id`: a number of COCO, a file without its ending, or nothing."""
    row: int
    """The first row that is of it."""
    captions: list[str]


def read(url: str) -> tuple[Tensor, list[list[Caption]]]:
    """Return `embedding_ND` in float32 and the captions of each row.

    The embeddings are as CLIP gave them, not normalised, whatever a training does with them.

    Raises:
        SettingsError: it is no data file of the original, or is damaged; holds anything but plain
            values and tensors (which is not run); names rows that are not there; leaves rows
            without captions; or has numbers that are not finite.
        StorageError: it cannot be read.
    """
    with _told(url):
        whole = pickledtensors.loads(_bytes(url))
        if not isinstance(whole, dict) or not {EMBEDDINGS, CAPTIONS} <= set(whole):
            raise SettingsError(
                f"It must be a dict of `{EMBEDDINGS}` and `{CAPTIONS}`, but is not."
            )
        embedding_ND = _embeddings(whole[EMBEDDINGS])
        return embedding_ND, _captions(whole[CAPTIONS], len(embedding_ND))


def images(embedding_ND: Tensor, captions: Sequence[Sequence[Caption]]) -> list[Image]:
    """Gather the rows of each image: those of one name that hold the same numbers.

    Rows without a name are images of their own.
    """
    found: dict[tuple[str, object], Image] = {}
    for row, (embedding_D, said) in enumerate(zip(embedding_ND.numpy(), captions, strict=True)):
        numbers = hashlib.sha256(embedding_D.tobytes()).digest()
        for caption in said:
            key = (caption.image_id, numbers if caption.image_id else row)
            image = found.setdefault(key, Image(caption.image_id, row, []))
            image.captions.append(caption.text)
    return list(found.values())


def _embeddings(found: object) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.dtype.is_floating_point:
        raise SettingsError(f"`{EMBEDDINGS}` must be a tensor of N rows of D numbers, but is not.")
    embedding_ND = found.to(torch.float32, copy=True)  # the file's bytes may go
    if not embedding_ND.numel():
        raise SettingsError(f"`{EMBEDDINGS}` is empty ({tuple(found.shape)}).")
    finite_N = embedding_ND.isfinite().all(1)
    if not bool(finite_N.all()):
        rows = (~finite_N).nonzero().flatten()
        raise SettingsError(
            f"`{EMBEDDINGS}` must be finite, but {len(rows)} of {len(finite_N)} rows hold NaN or "
            f"infinity (row {int(rows[0])} first)."
        )
    return embedding_ND


def _captions(found: object, rows: int) -> list[list[Caption]]:
    if not isinstance(found, list):
        raise SettingsError(f"`{CAPTIONS}` must be a list, but is not.")
    captions: list[list[Caption]] = [[] for _ in range(rows)]
    pairs = [_caption(place, one) for place, one in enumerate(found)]
    if _are_counted_anew([row for row, _ in pairs], rows):
        log.warning(
            "The rows of the captions are counted anew after %d of them, a defect of "
            "parse_conceptual.py: each caption is taken for the row at its own place.",
            next(place for place, (row, _) in enumerate(pairs) if row != place),
        )
        pairs = [(place, caption) for place, (_, caption) in enumerate(pairs)]
    for place, (row, caption) in enumerate(pairs):
        if not 0 <= row < rows:
            raise SettingsError(
                f"Caption {place} is of row {row}, but there are rows 0 to {rows - 1} only."
            )
        captions[row].append(caption)
    without = sum(not one for one in captions)
    if without:
        raise SettingsError(
            f"Each of the {rows} embeddings must have a caption, but {without} have none (row "
            f"{captions.index([])} first; {len(found)} captions in all)."
        )
    return captions


def _are_counted_anew(found: Sequence[int], rows: int) -> bool:
    """Tell whether the captions count 0, 1, ... to some row and once more 0, 1, ... to the end.

    `parse_conceptual.py` writes the validation part and then the training part into one file, a
    caption for each row in their order, but counts the rows of each part from 0.
    """
    first = next((place for place, row in enumerate(found) if row != place), rows)
    return len(found) == rows > first and list(found[first:]) == list(range(rows - first))


def _caption(place: int, found: Any) -> tuple[int, Caption]:  # noqa: ANN401 - whatever the file says
    if isinstance(found, Mapping):
        row, text, image_id = (found.get(key) for key in (EMBEDDINGS, "caption", "image_id"))
        if type(row) is int and isinstance(text, str) and isinstance(image_id, str | int | None):
            return row, Caption(text, "" if image_id is None else str(image_id))
    raise SettingsError(
        f"Caption {place} must be a dict of `caption` (a text), `image_id` and `{EMBEDDINGS}` (the "
        "number of a row), but is not."
    )


def _bytes(url: str) -> bytearray:
    data = bytearray()
    for piece in storage.stream(url):
        data += piece
    if not data or data[0] != _PICKLE:
        archive = " It is an archive, as `torch.save` writes it." if data[:2] == b"PK" else ""
        raise SettingsError(f"It must be a pickle, but is not.{archive}")
    return data


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(
            f"{url} cannot be read as data of the original ClipCap. {error}"
        ) from error
