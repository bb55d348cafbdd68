"""Stored embeddings, a label set and what people say of the images in; its figures out.

No image is read and no image encoder runs; the label set need not have been used before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

import clipcap
from clipcap import commits, embedding, layout, manifest, tables
from clipcap.commits import Commit
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError, StorageError
from clipcap.labels import bank
from clipcap.labels.bank import Bank, Given
from clipcap.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipcap.labels.judged import Judged
    from clipcap.labels.judging import Judge
    from clipcap.labels.truth import Truth

_MANIFEST: Final = ["image_id", "content_sha256", "source_uri"]
_EMBEDDINGS: Final = ["image_id", "content_sha256", "embedding"]
SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _MANIFEST),
        pa.field("truth", tables.STRINGS, nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("right", pa.bool_(), nullable=False),
        pa.field("accepted_label", pa.string()),
        pa.field("accepted_score", pa.float32()),
        pa.field("wrong_label", pa.string()),
        pa.field("labels", tables.STRINGS, nullable=False),
        pa.field("scores", pa.list_(pa.field("element", pa.float32())), nullable=False),
    ]
)
"""A row for each image: the best label that is no group, the best accepted one, the best accepted
one that is wrong, and the five best labels."""


class EvaluateLabelsSettings(Settings):
    """What a label set is judged by."""

    truth: str = ""
    """Table of image and label (CSV, TSV, JSON, Parquet; several labels as `a|b`, none: none of
    these), or `folder`: the label is the folder that an image lay in."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest score of an accepted label, where the label set has none, as the label stage was
    told."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the labels of one set are worth, by what people say of the same images."""

    label_set: str
    names: tuple[str, ...]
    model_id: str
    signature: str
    """What the figures must be told with."""
    counts: dict[str, int]
    """Images of the truth that were judged, and those that could not be."""
    judged: Judged
    table: pa.Table
    """One row for each image, as `SCHEMA` says, in the order of the truth."""
    rows: dict[int, int]
    """The row of each image by its place in the truth, by which `judged` names it."""

    def metadata(self) -> dict[str, str]:
        """Return what the footer of a score file says."""
        told = {"label_set": self.label_set, "model_id": self.model_id, "signature": self.signature}
        return {**told, **{name: str(count) for name, count in self.counts.items()}}

    def told(self) -> dict[str, Any]:
        """Return everything but the images, as JSON has it; what is no number is null."""
        of_labels = [{"label": self.names[one.index], **asdict(one)} for one in self.judged.labels]
        confusions = [
            {"label": self.names[one.true], "given": self.names[one.given], "count": one.count}
            for one in self.judged.confusions
        ]
        told: dict[str, Any] = _without_nan(
            {
                "label_set": self.label_set,
                "model_id": self.model_id,
                "signature": self.signature,
                **self.counts,
                "figures": [asdict(one) for one in self.judged.figures],
                "levels": [asdict(one) for one in self.judged.levels],
                "labels": of_labels,
                "confusions": confusions,
                "reliability": [asdict(one) for one in self.judged.reliability],
                "reliability_by_mass": [asdict(one) for one in self.judged.by_mass],
            }
        )
        return told


def evaluate_labels(
    out: str, given: Given, *, settings: EvaluateLabelsSettings, encoder: EmbedSettings
) -> Evaluation:
    """Judge a label set by what people say of the images of an output.

    Args:
        out: the canonical URL of the output.
        given: the label set, in words or fitted.
        settings: what it is judged by.
        encoder: whose embeddings; those of a fitted label set are known.

    Raises:
        SettingsError: the truth says nothing of embedded images, or the embeddings are of other
            weights.
        NotFoundError: there is no such file of truth.
    """
    from clipcap.labels import judged, truth

    if not settings.truth:
        raise SettingsError(
            "A label set is judged by what people say of the images: --truth FILE, a table of "
            "image and label, or --truth folder, where the source has a folder for each label."
        )
    said = truth.read(settings.truth, out, given.label_set)
    judge, found = _looked(out, given, said, settings, encoder)
    done = judged.judged(judge)
    return Evaluation(
        label_set=given.label_set.name,
        names=given.label_set.names,
        model_id=judge.bank.model_id,
        signature=_signature(judge, given, said, settings),
        counts=_counts(done, said),
        judged=done,
        table=_table(judge, said, found),
        rows={place: row for row, place in enumerate(sorted(found))},
    )


def _looked(
    out: str, given: Given, said: Truth, settings: EvaluateLabelsSettings, encoder: EmbedSettings
) -> tuple[Judge, dict[int, dict[str, Any]]]:
    """Return what was seen of the images of a truth, and what the manifest says of them."""
    from clipcap.labels.judging import Judge

    judge: Judge | None = None
    places = {image_id: place for place, image_id in enumerate(said.image_ids)}
    found: dict[int, dict[str, Any]] = {}
    for source, rows in _embedded(out, given, encoder, said):
        if judge is None:
            made = bank.of(given, source, out=out, encoder=encoder)
            judge = Judge(made, said, threshold=settings.threshold)
        new = [(places[row["image_id"]], row) for row in rows.select(_MANIFEST).to_pylist()]
        at = [n for n, (place, _) in enumerate(new) if place not in found]  # moved meanwhile
        found.update(new[n] for n in at)
        judge.look(*_block(rows.take(pa.array(at, pa.int64())), places, source))
    if judge is None or not found:
        raise SettingsError(
            f"The truth {settings.truth} is of {len(said.image_ids):,} images of {out}, but none "
            "is embedded by this model. `clipcap embed` does that."
        )
    return judge, found


def _embedded(
    out: str, given: Given, encoder: EmbedSettings, said: Truth
) -> Iterator[tuple[Commit, pa.Table]]:
    """Yield the embeddings of images that the truth names, shard by shard, of their content now."""
    ref = embedding.reference(encoder) if given.fitted is None else given.fitted
    ids = pa.array(said.image_ids, pa.string())
    for shard in manifest.shards(out):
        live = tables.read(layout.manifest(out, shard), _MANIFEST)
        live = live.filter(pc.is_in(live["image_id"], value_set=ids))
        source = commits.find(layout.embeddings(out, shard, model_id=ref.model_id))
        if live.num_rows == 0 or source is None:
            continue
        if isinstance(ref, Bank):
            bank.require_same_model(ref, source)
        else:
            embedding.require_same(source, ref)
        rows = tables.read(source.url, _EMBEDDINGS)
        at = pc.index_in(rows["image_id"], value_set=live["image_id"].combine_chunks())
        kept = live.take(at)  # null where the truth does not name it
        same = pc.fill_null(pc.equal(rows["content_sha256"], kept["content_sha256"]), False)  # noqa: FBT003
        yield source, rows.append_column("source_uri", kept["source_uri"]).filter(same)


def _block(
    rows: pa.Table, places: dict[str, int], source: Commit
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places in the truth and the embeddings of some rows."""
    import numpy as np

    embedding_BD = tables.vectors(rows)
    if not np.isfinite(embedding_BD).all():
        raise StorageError(
            f"The embeddings {source.url} must be numbers, but some are not. Remove the file and "
            "embed again."
        )
    place_B = np.array([places[one] for one in rows["image_id"].to_pylist()], np.int64)
    return place_B, embedding_BD


def _signature(judge: Judge, given: Given, said: Truth, settings: EvaluateLabelsSettings) -> str:
    made = judge.bank
    parts = [
        f"labels:{given.label_set.name}@{given.sha256[:12]}",
        f"model:{made.model_id}@{made.model_sha256[:12]}",
        f"truth:{said.sha256[:12]}",
        f"images:{int(judge.seen_I.sum())}",
        f"threshold:{settings.threshold:g}",
        f"clipcap:{clipcap.__version__}",
    ]
    return "|".join(parts)


def _counts(done: Judged, said: Truth) -> dict[str, int]:
    return {
        "images": done.images,
        "none_of_these": done.none_of_these,
        "not_embedded": len(said.image_ids) - done.images,
        "left_out": said.left_out,
        "unknown_labels": len(said.unknown_labels),
        "missing_images": said.missing_images,
    }


def _table(judge: Judge, said: Truth, found: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """Return a row for each image that was seen, in the order of the truth."""
    import numpy as np

    names = judge.bank.label_set.names
    place_I = np.array(sorted(found), np.int64)
    top_IK, score_IK = judge.top_IK[place_I], judge.score_IK[place_I]
    accepted_I, wrong_I = judge.answer_I[place_I], judge.wrong_I[place_I]
    columns = {
        **{name: [found[place][name] for place in place_I.tolist()] for name in _MANIFEST},
        "truth": [[names[n] for n in sorted(said.labels_N[place])] for place in place_I.tolist()],
        "label": [names[n] for n in top_IK[:, 0].tolist()],
        "score": score_IK[:, 0],
        "right": judge.facts.agree(place_I, top_IK[:, 0]),
        "accepted_label": [names[n] if n >= 0 else None for n in accepted_I.tolist()],
        "accepted_score": pa.array(judge.answer_score_I[place_I], mask=accepted_I < 0),
        "wrong_label": [names[n] if n >= 0 else None for n in wrong_I.tolist()],
        "labels": [[names[n] for n in row] for row in top_IK.tolist()],
        "scores": score_IK.tolist(),
    }
    return pa.table([pa.array(columns[one.name], one.type) for one in SCHEMA], schema=SCHEMA)


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
