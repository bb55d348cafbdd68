"""A data file of the original ClipCap in, embeddings and the captions of each out.

`parse_coco.py` and `parse_conceptual.py` of rmokady/CLIP_prefix_caption write pickles
(`oscar_split_ViT-B_32_train.pkl`), which its `train.py` would have run; here they are only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from clipcap import pickledtensors, storage
from clipcap.errors import SettingsError

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


class Tokens(NamedTuple):
    """The file that the original keeps beside its data, `..._tokens.pkl`."""

    token_ids: list[Tensor]
    """GPT-2's tokens of each caption, int64."""
    rows: list[int]
    """The row of each caption."""
    longest: int
    """Tokens of the longest caption, as the file says."""


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


def read_tokens(url: str) -> Tokens:
    """Return what a `..._tokens.pkl` holds.

    Nothing in it says which data file it was made from: compare it before you believe it.

    Raises:
        SettingsError: it is no such file, or is damaged; its lists are not as long as each other.
        StorageError: it cannot be read.
    """
    with _told(url):
        match pickledtensors.loads(_bytes(url)):
            case [list(token_ids), list(rows), int(longest)] if len(token_ids) == len(rows):
                good = all(
                    isinstance(ids_T, Tensor) and ids_T.ndim == 1 and ids_T.dtype == torch.int64
                    for ids_T in token_ids
                )
                if good and all(type(row) is int and row >= 0 for row in rows):
                    return Tokens([ids_T.clone() for ids_T in token_ids], rows, longest)
    raise SettingsError(
        f"{url} must hold a list of tokens, a list of as many rows and a number, but does not."
    )


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
    for place, one in enumerate(found):
        row, caption = _caption(place, one)
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
