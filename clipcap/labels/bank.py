"""A label set and a model in; a vector and an affine rule per label out, encoded once and kept.

`logit = cosine * gain + shift` for every label: what a model was trained with (its scale and
bias), a fitted temperature, a normalisation over a collection and a linear probe all have that
form, so one matrix product scores them all. A bank that was fitted is a Parquet file, and a label
set like any other; it holds for the weights that it was fitted with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import numpy as np
import pyarrow as pa

from clipcap import embedding, layout, storage, tables
from clipcap.commits import Commit
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import DamagedError, NotFoundError, SettingsError
from clipcap.labels import sets, stored
from clipcap.labels.sets import LabelSet
from clipcap.settings import canonical_json, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.encoders import Encoder

    Floats = NDArray[np.float32]

Activation = Literal["softmax", "sigmoid", "contrast"]
"""Over the set with its background; of each label alone; of each label against the background."""
VERSION: Final = 2
"""Raised by hand when a bank's numbers change their meaning."""
FITTED: Final = ".parquet"
_AT_ONCE: Final = 256  # labels whose texts are encoded before their means are taken
_NOTES: Final = {"source", "licence"}
_LOCK: Final = Lock()


@dataclass(frozen=True, slots=True)
class Bank:
    """A label set as numbers for one model. C labels, the background's last."""

    label_set: LabelSet
    vector_CD: Floats
    """What embeddings are multiplied with; unit vectors where the logit is of a cosine."""
    gain_C: Floats
    shift_C: Floats
    threshold_N: Floats
    """Lowest accepted score of each of the N labels; NaN: the stage's own."""
    activation: Activation
    """How logits become scores."""
    model_id: str
    model_sha256: str
    fit: str = ""
    """How it was fitted, as JSON; empty: as the model came."""

    @property
    def count(self) -> int:
        """N, the number of labels; what follows them is background."""
        return len(self.label_set.labels)


@dataclass(frozen=True, slots=True)
class Given:
    """A label set as it was asked for: in words, or fitted."""

    label_set: LabelSet
    sha256: str
    """Of all that changes a result."""
    fitted: Bank | None = None


def load(name: str) -> Given:
    """Read a label set by its bundled name, path or URL; `.parquet` is a fitted one.

    Raises:
        SettingsError: nobody knows it, or it is malformed; says every problem with its line.
    """
    if name.endswith(FITTED):
        return _fitted(name)
    label_set = sets.load(name)
    return Given(label_set, _digest(label_set))


def of(
    given: Given, source: Commit, *, out: str, encoder: EmbedSettings, to_fit: bool = False
) -> Bank:
    """Return the bank for the embeddings of a commit; texts are encoded once and kept in `out`.

    Args:
        given: the label set.
        source: the embeddings.
        out: the canonical URL of the output.
        encoder: the encoder of the embeddings.
        to_fit: the scores will be fitted, so that a bias that the model lacks is 0 for now.

    Raises:
        SettingsError: it was fitted to other embeddings, or sigmoid scores need what is not there.
    """
    if given.fitted is not None:
        require_same_model(given.fitted, source)
        return given.fitted
    scale = float(source.metadata["logit_scale"])
    found = source.metadata.get("logit_bias")
    bias = float(found) if found else None
    label_set = given.label_set
    if to_fit and bias is None and _are_alone(label_set) and not label_set.background:
        bias = 0.0
    vector_CD = text_embeddings(label_set, out=out, encoder=encoder)
    made = in_words(label_set, vector_CD, scale=scale, bias=bias)
    return replace(
        made,
        model_id=source.metadata["model_id"],
        model_sha256=source.metadata["model_sha256"],
    )


def in_words(
    label_set: LabelSet, vector_CD: Floats, *, scale: float, bias: float | None = None
) -> Bank:
    """Return the bank of a label set that nobody has fitted: the model's own scale and bias.

    Args:
        label_set: The words.
        vector_CD: Unit text embeddings of the labels, then of the background.
        scale: What the model multiplies a cosine with.
        bias: What it adds, where it was trained with a sigmoid (SigLIP).

    Raises:
        SettingsError: sigmoid scores of a model without a bias need background names.
    """
    has_bias = bias is not None
    sigmoid = _are_alone(label_set) or (has_bias and label_set.scores == "model")
    if sigmoid and not has_bias and not label_set.background:
        raise SettingsError(
            f"The label set {label_set.name} scores each label alone, for which this model must "
            "have a bias, or the label set `background` names to compare with, but neither is "
            "there. Add background names, or fit it: `clipcap labels fit`."
        )
    has_texts_C = vector_CD.any(axis=1)  # a group has none: its score is its children's
    alone: Activation = "sigmoid" if has_bias else "contrast"
    thresholds = [label_set.threshold if one.threshold is None else one.threshold
                  for one in label_set.labels]  # fmt: skip
    return Bank(
        label_set=label_set,
        vector_CD=np.ascontiguousarray(vector_CD, dtype=np.float32),
        gain_C=np.where(has_texts_C, np.float32(scale), np.float32(0)),
        shift_C=np.where(has_texts_C, np.float32(bias or 0), np.float32(-np.inf)),
        threshold_N=np.array(thresholds, dtype=np.float32),  # None becomes NaN
        activation=alone if sigmoid else "softmax",
        model_id="",
        model_sha256="",
    )


def _are_alone(label_set: LabelSet) -> bool:
    """Whether each label is scored alone, whatever the model."""
    is_models = label_set.scores == "model" and label_set.multi_label
    return label_set.scores == "sigmoid" or is_models


def require_same_model(bank: Bank, source: Commit) -> None:
    """Do nothing where a bank was fitted to embeddings of the same weights.

    Raises:
        SettingsError: it was not.
    """
    found = source.metadata.get("model_sha256", "")
    if bank.model_sha256 != found:
        raise SettingsError(
            f"The label set {bank.label_set.name} must be fitted to the embeddings {source.url}, "
            f"made by {source.metadata.get('model_id')} with weights {found[:12]}, but was fitted "
            f"to {bank.model_id} with {bank.model_sha256[:12]} instead. Fit it again."
        )
    width, dim = bank.vector_CD.shape[1], int(source.metadata.get("dim", 0))
    if dim and dim != width:
        raise SettingsError(
            f"The label set {bank.label_set.name} must have vectors of {dim} numbers, as the "
            f"embeddings {source.url}, but has {width} numbers. Fit it again."
        )


def to_bytes(bank: Bank) -> bytes:
    """Return a bank as a Parquet file: a row per label, what it was made from in the footer."""
    kinds = ["label"] * bank.count + ["background"] * len(bank.label_set.background)
    flat = pa.array(bank.vector_CD.ravel())
    width = tables.vector_type(bank.vector_CD.shape[1])
    missing = [None] * len(bank.label_set.background)
    thresholds = [None if np.isnan(one) else float(one) for one in bank.threshold_N]
    table = pa.table(
        {
            "name": pa.array([*bank.label_set.names, *bank.label_set.background]),
            "kind": pa.array(kinds),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=width),
            "gain": pa.array(bank.gain_C),
            "shift": pa.array(bank.shift_C),
            "threshold": pa.array([*thresholds, *missing], pa.float32()),
        }
    )
    metadata = {
        "bank": str(VERSION),
        "label_set": canonical_json(bank.label_set.model_dump(mode="json")),
        "activation": bank.activation,
        "model_id": bank.model_id,
        "model_sha256": bank.model_sha256,
        "fit": bank.fit,
    }
    return tables.to_bytes(table, metadata)


def from_table(table: pa.Table, url: str) -> Bank:
    """Return the bank that `to_bytes` wrote.

    Raises:
        SettingsError: it is something else, or damaged.
    """
    metadata = tables.metadata(table)
    activation = metadata.get("activation", "")
    if metadata.get("bank") != str(VERSION) or activation not in get_args(Activation):
        raise SettingsError(
            "A label set in Parquet must be one that `clipcap labels fit` or `clipcap labels "
            f"learn` wrote with this version, but {url} is not. Fit it again."
        )
    return Bank(activation=cast("Activation", activation), **stored.parts(table, url))


def text_embeddings(label_set: LabelSet, *, out: str, encoder: EmbedSettings) -> Floats:
    """Return one unit vector per label and background name, encoded once per set and model."""
    ref = embedding.reference(encoder)
    wanted = digest([VERSION, label_set.texts(), embedding.recipe(encoder, ref)])
    url = layout.label_embeddings(out, model_id=ref.model_id, digest=wanted)
    with _LOCK:
        try:
            return tables.vectors(tables.read(url))
        except NotFoundError:
            vector_CD = encoded(label_set, embedding.load(encoder, Speed()))
        flat = pa.FixedSizeListArray.from_arrays(
            pa.array(vector_CD.ravel()), type=tables.vector_type(ref.dim)
        )
        names = pa.array([*label_set.names, *label_set.background])
        table = pa.table({"name": names, "embedding": flat})
        storage.write(url, tables.to_bytes(table, {"label_set": label_set.name}))
        return vector_CD


def encoded(label_set: LabelSet, encoder: Encoder) -> Floats:
    """Return a unit vector per label and background name: the mean of its texts' unit vectors.

    A group, which has no texts, gets zeros. Texts of some labels at a time are held.
    """
    texts_C = label_set.texts()
    vector_CD = np.zeros((len(texts_C), encoder.dim), np.float32)
    for at in range(0, len(texts_C), _AT_ONCE):
        some = texts_C[at : at + _AT_ONCE]
        flat_TD = encoder.encode_texts([text for texts in some for text in texts]).numpy()
        ends = np.cumsum([len(texts) for texts in some])
        for n, end in enumerate(ends):
            if some[n]:
                vector_CD[at + n] = _averaged(flat_TD[end - len(some[n]) : end])
    return vector_CD


def _averaged(embedding_MD: Floats) -> Floats:
    """Return the mean of M unit vectors, made unit again: as open_clip's zero-shot classifier."""
    unit_MD = embedding_MD / np.linalg.norm(embedding_MD, axis=1, keepdims=True)
    mean_D = unit_MD.mean(axis=0)
    unit: Floats = mean_D / np.linalg.norm(mean_D)
    return unit


def _fitted(url: str) -> Given:
    try:
        table = tables.read(storage.canonical(url))
    except NotFoundError as error:
        raise SettingsError(f"The label set {url} is not there.") from error
    except DamagedError as error:
        raise SettingsError(f"The label set {url} must be Parquet, but is not: {error}.") from error
    bank = from_table(table, url)
    numbers = [bank.vector_CD, bank.gain_C, bank.shift_C, bank.threshold_N]
    sha256 = digest([_digest(bank.label_set), [one.tobytes().hex() for one in numbers],
                     bank.activation, bank.model_sha256])  # fmt: skip
    return Given(bank.label_set, sha256, bank)


def _digest(label_set: LabelSet) -> str:
    return digest([VERSION, label_set.model_dump(mode="json", exclude=set(_NOTES))])
