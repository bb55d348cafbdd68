"""Stored embeddings and a list of words in, a draft of a label set out: a label for each cluster.

Raw likeness finds the same few words for any picture, as every image is about as near to them. So
images are compared with words by how both differ from what is usual.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from clipcap import embedding, storage, tables
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import bank, check, sets
from clipcap.labels.sets import LabelSet
from clipcap.models import EncoderRef
from clipcap.settings import Settings, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.encoders import Encoder

    Floats = NDArray[np.float32]

WORDS: Final = sets.FOLDER / "words.txt"
_LICENCE: Final = "names of clipcap's words.txt: WordNet 3.0 license and Apache-2.0"
_PART: Final = re.compile(r"\w+")
_NONSENSE: Final = ("qzxvkj", "wjfqpz")
_NEAREST, _OTHERS = 3, 3  # keys and further words of each cluster that are told
_MOST_BY_ITSELF: Final = 50
_BATCH: Final = 4_096  # images of one step of the clustering


class ProposeSettings(Settings):
    """How images are told apart and named."""

    clusters: int | None = Field(default=None, ge=2, le=1_000)
    """Kinds of images to tell apart; if not given the root of half their number, at most 50."""
    words: str = ""
    """Text file of names to choose from, one a line; if not given the bundled 5,000 words."""
    template: str = Field(default="a photo of a {}.", pattern=r"^[^{}]*\{\}[^{}]*$")
    """The sentence that words stand in, with one {}."""
    images: int = Field(default=50_000, ge=2, le=500_000)
    """Images that are looked at, drawn from all of them."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Of the draw and the clustering."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Images that are alike, and what they are called."""

    name: str
    others: tuple[str, ...]
    """The next best words."""
    images: int
    keys: tuple[str, ...]
    """Of the images nearest to its middle."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The clusters of an output, the largest first."""

    clusters: tuple[Cluster, ...]
    images: int
    """That were looked at."""
    live: int
    words: int
    """That were compared."""
    unknown: int
    """That the encoder cannot tell from nonsense."""
    model_id: str
    settings: ProposeSettings


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Some images of an output."""

    keys: list[str]
    embedding_BD: Floats
    live: int


def propose(out: str, *, settings: ProposeSettings, encoder: EmbedSettings) -> Proposal:
    """Return named clusters of an output's images; no image is read, and memory is bounded.

    Args:
        out: Canonical URL of the output.
        settings: How.
        encoder: That of the embeddings, whose text side reads the words.

    Raises:
        NotFoundError: there are no images, or a shard is not embedded.
        SettingsError: too few images or words to tell apart, or embeddings of other weights.
    """
    ref = embedding.reference(encoder)
    drawn = _drawn(out, ref, settings)
    listed = words(settings.words)
    known = _known(listed, settings.template, embedding.load(encoder, Speed()))
    label_set = LabelSet(name="words", labels=known, templates=(settings.template,))
    text_WD = bank.text_embeddings(label_set, out=out, encoder=encoder)
    usual_D = drawn.embedding_BD.mean(axis=0)
    special_BD = drawn.embedding_BD - usual_D
    cluster_B = _clustered(special_BD, settings)
    return Proposal(
        clusters=_named(cluster_B, special_BD, drawn.keys, (known, text_WD)),
        images=len(drawn.keys),
        live=drawn.live,
        words=len(known),
        unknown=len(listed) - len(known),
        model_id=ref.model_id,
        settings=settings,
    )


def words(url: str = "") -> list[str]:
    """Return the words of a list, or the bundled ones; of twins the first.

    Raises:
        SettingsError: it is not there, no UTF-8, or too long.
    """
    try:
        data = storage.read(storage.canonical(url)) if url else WORDS.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except NotFoundError as error:
        raise SettingsError(f"The file of words {url} is not there.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The list of words {url} must be UTF-8, but is not: {error}."
        ) from error
    found: dict[str, str] = {}
    for line in lines:
        word = " ".join(line.split())
        if word and word.isprintable() and not word.startswith("#"):
            found.setdefault(check.folded(word), word)
    if len(found) > check.MOST_LABELS:
        raise SettingsError(
            f"There must be at most {check.MOST_LABELS:,} words, but {url} has {len(found):,}."
        )
    return list(found.values())


def draft(found: Proposal, name: str) -> str:
    """Return the label set as TOML, with what its author wants to see of each cluster."""
    of = "" if found.images == found.live else f", drawn from {found.live:,}"
    kinds = f"{len(found.clusters)} clusters of {found.images:,} images{of}"
    licence = "" if found.settings.words else _LICENCE
    head = [
        f"# A draft: {kinds}, embedded by {found.model_id} (seed {found.settings.seed}).",
        "# Look at the images, rename, merge and leave out; `background` takes names of the rest.",
        f"name = {_quoted(name)}",
        f"source = {_quoted(f'clipcap labels propose: {kinds} by {found.model_id}')}",
        f"licence = {_quoted(licence)}",
        f"templates = [{_quoted(found.settings.template)}]",
        "names = [",
    ]
    return "\n".join([*head, *(_lines(one) for one in found.clusters), "]", ""])


def _lines(one: Cluster) -> str:
    keys = ", ".join(map(_quoted, one.keys))
    others = f"; or {', '.join(one.others)}" if one.others else ""
    return f"  # {one.images:,} images like {keys}{others}\n  {_quoted(one.name)},"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _drawn(out: str, ref: EncoderRef, settings: ProposeSettings) -> _Drawn:
    """Return the images whose lots are lowest, whatever shards they lie in."""
    keys: list[str] = []
    lot_B = np.zeros(0, np.uint64)
    embedding_BD = np.zeros((0, ref.dim), np.float32)
    live = 0
    for source in embedding.of_output(out, ref).values():
        table = tables.read(source.url, ["image_id", "key", "embedding"])
        live += table.num_rows
        its_lot_B = _lots(table["image_id"], settings.seed)
        if len(keys) == settings.images:
            few = np.flatnonzero(its_lot_B < lot_B[-1])
            table, its_lot_B = table.take(pa.array(few)), its_lot_B[few]
        keys += table["key"].to_pylist()
        lot_B = np.concatenate([lot_B, its_lot_B])
        embedding_BD = np.concatenate([embedding_BD, tables.vectors(table)])
        order = np.argsort(lot_B, kind="stable")[: settings.images]
        keys, lot_B, embedding_BD = [keys[n] for n in order], lot_B[order], embedding_BD[order]
    if not keys:
        raise NotFoundError(f"There must be embedded images in {out}, but there are none.")
    if not np.isfinite(embedding_BD).all():
        raise SettingsError("Every embedding must be of numbers, but some are not. Embed again.")
    return _Drawn(keys, embedding_BD, live)


def _lots(image_ids: pa.ChunkedArray, seed: int) -> NDArray[np.uint64]:
    """Return a number for each image that only its id and the seed decide."""
    salt = int(digest(["propose", seed])[:16], 16)
    parts = [int(one[:16], 16) ^ salt for one in image_ids.to_pylist()]
    return np.array(parts, np.uint64) * np.uint64(salt | 1)


def _known(listed: list[str], template: str, encoder: Encoder) -> list[str]:
    """Return the words of which the encoder knows every part.

    Some tokenizers have one token for all that they do not know: nonsense is then one vector, and
    so is each such word. Others (byte pairs) can spell anything.
    """
    first_D, second_D = _vectors(_NONSENSE, template, encoder)
    if np.array_equal(first_D, second_D):
        parts = sorted({part for word in listed for part in _PART.findall(word)})
        strange_P = (_vectors(parts, template, encoder) == first_D).all(axis=1)
        strange = {part for part, is_strange in zip(parts, strange_P, strict=True) if is_strange}
        listed = [word for word in listed if strange.isdisjoint(_PART.findall(word))]
    if len(listed) < 2:
        raise SettingsError(
            f"There must be at least two words that {encoder.model_id} knows, but there are "
            f"{len(listed)}. Give a list of your own: --words FILE."
        )
    return listed


def _vectors(texts: Iterable[str], template: str, encoder: Encoder) -> Floats:
    said = [template.replace("{}", text) for text in texts]
    found: Floats = encoder.encode_texts(said).numpy().round(5)  # of a batch, not of a text
    return found


def _clustered(special_BD: Floats, settings: ProposeSettings) -> NDArray[np.int64]:
    """Return the cluster of each image, counted from 0 without gaps."""
    count = len(special_BD)
    by_itself = max(2, min(_MOST_BY_ITSELF, round((count / 2) ** 0.5)))
    wanted = min(settings.clusters or by_itself, count)
    length_B = np.linalg.norm(special_BD, axis=1, keepdims=True)
    unit_BD = special_BD / np.maximum(length_B, np.finfo(np.float32).tiny)
    means = MiniBatchKMeans(wanted, batch_size=_BATCH, n_init=5, random_state=settings.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        given_B = means.fit_predict(unit_BD)
    some, cluster_B = np.unique(given_B, return_inverse=True)
    if len(some) < 2 or not length_B.any():
        raise SettingsError(
            f"There must be at least two images that differ, but all {count:,} look the same."
        )
    return np.asarray(cluster_B, np.int64)


def _named(
    cluster_B: NDArray[np.int64],
    special_BD: Floats,
    keys: list[str],
    named: tuple[list[str], Floats],
) -> tuple[Cluster, ...]:
    """Return the clusters with the words that fit them best in all, each word given once."""
    known, text_WD = named
    size_K = np.bincount(cluster_B)
    if len(known) < len(size_K):
        raise SettingsError(
            f"There must be a word for each of {len(size_K)} clusters, but only {len(known)} are "
            "known to the encoder. Ask for fewer clusters, or give --words FILE."
        )
    middle_KD = np.stack([special_BD[cluster_B == k].mean(axis=0) for k in range(len(size_K))])
    special_WD = text_WD - text_WD.mean(axis=0)
    length_W = np.linalg.norm(special_WD, axis=1, keepdims=True)
    likeness_KW = middle_KD @ (special_WD / np.maximum(length_W, np.finfo(np.float32).tiny)).T
    _, word_K = linear_sum_assignment(likeness_KW, maximize=True)
    taken = set(word_K.tolist())
    found = []
    for k in np.argsort(-size_K, kind="stable"):
        best_W = np.argsort(-likeness_KW[k], kind="stable")[: _OTHERS + len(taken)]
        others = [known[w] for w in best_W if w not in taken][:_OTHERS]
        member_M = np.flatnonzero(cluster_B == k)
        near_M = np.argsort(-(special_BD[member_M] @ middle_KD[k]), kind="stable")[:_NEAREST]
        found.append(
            Cluster(
                name=known[word_K[k]],
                others=tuple(others),
                images=int(size_K[k]),
                keys=tuple(keys[n] for n in member_M[near_M]),
            )
        )
    return tuple(found)
