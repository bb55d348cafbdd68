"""Stored embeddings and a label set in, labels table out: zero-shot, without any image."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipcap import commits, embedding, labels, layout, rows, storage, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import LabelSet
from clipcap.layout import Run, Shard
from clipcap.models import EncoderRef
from clipcap.outcomes import Outcome, State, committed
from clipcap.settings import Settings, canonical_json, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION: Final = 1
"""Raised by hand when the meaning of a label row changes."""
_ROWS: Final = 8_192  # images scored at a time: 1,000 labels then need 32 MB
_LOCK = Lock()


class LabelSettings(Settings):
    """Which labels an image gets a row for."""

    label_sets: tuple[str, ...] = ("scene_places", "scene_things")
    """Bundled names, paths or URLs of label sets (TOML or JSON)."""
    top_k: int = Field(default=5, gt=0)
    """Rows of the best labels of each image; labels over the threshold get one in any case."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest score of an accepted label, where the label set has no threshold of its own."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A label set, its digest, and which of its labels an image gets a row for."""

    label_set: LabelSet
    sha256: str
    top_k: int
    threshold: float


def label(
    shard: Shard, label_set: LabelSet, *, run: Run, settings: LabelSettings, encoder: EmbedSettings
) -> Outcome:
    """Label the embedded images of a shard; reads no image, and encodes a label set's texts once.

    Raises:
        NotFoundError: the shard is not embedded.
        SettingsError: the embeddings are of other weights than the encoder asked for.
    """
    started = time.time()
    ref = embedding.reference(encoder)
    source = embedding.committed(shard, ref, out=run.out)
    _require_same_encoder(source, ref)
    threshold = settings.threshold if label_set.threshold is None else label_set.threshold
    asked = _Asked(label_set, _digest(label_set), settings.top_k, threshold)
    identity = [source.recipe, asked.sha256, asked.top_k, asked.threshold]
    recipe = digest(["label", VERSION, layout.CONTRACT, *identity])
    wanted = Fingerprint(recipe, source.metadata["members"])
    url = layout.labels(run.out, shard, label_set=label_set.name)
    found = rows.standing(url, wanted)
    if found.done:
        return _outcome(shard, "unchanged", found.done, started)
    live = tables.read(source.url)
    kept = rows.live_rows(found.rows, live)
    todo = rows.missing(live, kept)
    made = _label_rows(todo, asked, source, run=run, encoder=encoder)
    table = rows.joined(kept, tables.from_rows(made, tables.SCHEMAS["labels"]))
    metadata = {
        "members": wanted.members,
        "label_set": canonical_json(label_set.model_dump(mode="json")),
        "label_set_sha256": asked.sha256,
        "temperature": repr(1 / _scale(source)),
        "threshold": repr(threshold),
        "model_id": ref.model_id,
    }
    commit = commits.publish(url, table, fingerprint=wanted, run_id=run.run_id, metadata=metadata)
    return _outcome(shard, "written", commit, started, computed=todo.num_rows)


def _require_same_encoder(source: Commit, ref: EncoderRef) -> None:
    if source.metadata.get("model_sha256") != ref.sha256:
        raise SettingsError(
            f"The embeddings {source.url} must be made by {ref.model_id} with weights "
            f"{ref.sha256[:12]}, but are made with {source.metadata.get('model_sha256', '')[:12]} "
            "instead. Embed again."
        )


def _digest(label_set: LabelSet) -> str:
    return digest(label_set.model_dump(mode="json", exclude={"source", "licence", "threshold"}))


def _scale(source: Commit) -> float:
    return float(source.metadata["logit_scale"])


def _outcome(
    shard: Shard, state: State, commit: Commit, started: float, *, computed: int = 0
) -> Outcome:
    name = commit.url.partition("/labelset=")[2].partition("/")[0]
    return committed(
        "label", shard, commit, state=state, started_at=started, computed=computed, of=name
    )


def _label_rows(
    todo: pa.Table, asked: _Asked, source: Commit, *, run: Run, encoder: EmbedSettings
) -> list[dict[str, Any]]:
    if todo.num_rows == 0:
        return []
    name_CD = text_embeddings(asked.label_set, out=run.out, encoder=encoder)
    made: list[dict[str, Any]] = []
    for at in range(0, todo.num_rows, _ROWS):
        part = todo.slice(at, _ROWS)
        similarity_BC, score_BC = labels.score(
            tables.vectors(part), name_CD, logit_scale=_scale(source)
        )
        made += _rows(part, asked, similarity_BC, score_BC, run=run)
    return made


def text_embeddings(
    label_set: LabelSet, *, out: str, encoder: EmbedSettings
) -> NDArray[np.float32]:
    """Return one unit vector per name, computed once per label set and model, then kept."""
    ref = embedding.reference(encoder)
    wanted = digest([VERSION, _digest(label_set), embedding.recipe(encoder, ref)])
    url = layout.label_embeddings(out, model_id=ref.model_id, digest=wanted)
    with _LOCK:
        try:
            return tables.vectors(tables.read(url))
        except NotFoundError:
            name_CD = _encoded(label_set, encoder)
        schema = pa.schema([("name", pa.string()), ("embedding", tables.vector_type(ref.dim))])
        names = pa.array([*label_set.names, *label_set.background])
        flat = pa.array(name_CD.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
        table = pa.table([names, column], schema=schema)
        storage.write(url, tables.to_bytes(table, {"label_set": label_set.name}))
        return name_CD


def _encoded(label_set: LabelSet, encoder: EmbedSettings) -> NDArray[np.float32]:
    loaded = embedding.load(encoder, Speed())
    texts_CM = label_set.texts()
    flat = loaded.encode_texts([text for texts in texts_CM for text in texts]).numpy()
    return labels.averaged(flat.reshape(len(texts_CM), len(label_set.templates), -1))


def _rows(
    part: pa.Table,
    asked: _Asked,
    similarity_BC: NDArray[np.float32],
    score_BC: NDArray[np.float32],
    *,
    run: Run,
) -> list[dict[str, Any]]:
    """Return the rows of the best labels; a background name above a label makes it not accepted."""
    label_set, threshold = asked.label_set, asked.threshold
    count = len(label_set.names)
    order_BC = np.argsort(-score_BC[:, :count], axis=1, kind="stable")
    now = datetime.now(UTC)
    columns = part.select(["image_id", "key", "content_sha256", "model_id"]).to_pylist()
    made = []
    for b, row in enumerate(columns):
        best_background = float(score_BC[b, count:].max(initial=0.0))
        for rank, index in enumerate(order_BC[b], start=1):
            value = float(score_BC[b, index])
            if rank > asked.top_k and value < threshold:
                break
            following = float(score_BC[b, order_BC[b][rank]]) if rank < count else best_background
            made.append(
                {
                    **row,
                    "label_set": label_set.name,
                    "label": label_set.names[index],
                    "label_index": int(index),
                    "rank": rank,
                    "score": value,
                    "similarity": float(similarity_BC[b, index]),
                    "margin": value - following,
                    "accepted": value >= threshold and value > best_background,
                    "label_set_sha256": asked.sha256,
                    "created_at": now,
                    "run_id": run.run_id,
                }
            )
    return made
