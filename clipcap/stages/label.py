"""Stored embeddings and label sets in, labels tables out: zero-shot, without any image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pydantic import Field

from clipcap import commits, embedding, layout, rows, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.embedding import EmbedSettings
from clipcap.labels import bank
from clipcap.labels.bank import Given
from clipcap.layout import Run, Shard
from clipcap.models import EncoderRef
from clipcap.outcomes import Outcome, State, committed
from clipcap.settings import Settings, canonical_json, digest

if TYPE_CHECKING:
    from clipcap.labels.scoring import Best

VERSION: Final = 2
"""Raised by hand when the meaning of a label row changes."""
_ROWS: Final = 65_536  # images whose rows are made at a time
_READ: Final = ["image_id", "key", "content_sha256", "embedding"]


class LabelSettings(Settings):
    """Which labels an image gets a row for."""

    label_sets: tuple[str, ...] = ("scene_places", "scene_things")
    """Bundled names, paths or URLs of label sets: TOML or JSON, or Parquet if they were fitted."""
    top_k: int = Field(default=5, gt=0)
    """Rows of the best labels of each image; labels over the threshold get one in any case."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest score of an accepted label, where the label set has no threshold of its own."""
    device: str = Field(default="cpu", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where scores are computed: `auto` takes a GPU if there is one. Changes only the speed."""


@dataclass(frozen=True)
class _Work:
    """What the label sets of one shard have in common; the embeddings are read when needed."""

    run: Run
    settings: LabelSettings
    encoder: EmbedSettings
    source: Commit
    ref: EncoderRef

    @cached_property
    def live(self) -> pa.Table:
        """The embeddings of the shard."""
        return rows.embedded(self.source.url, _READ)


def label(
    shard: Shard,
    label_sets: Sequence[Given],
    *,
    run: Run,
    settings: LabelSettings,
    encoder: EmbedSettings,
) -> list[Outcome]:
    """Label the embedded images of a shard with each label set; reads no image.

    The embeddings are read once, and the texts of a label set are encoded once in an output's life.

    Raises:
        NotFoundError: the shard is not embedded.
        SettingsError: the embeddings are of other weights than the encoder's, or not finite.
    """
    ref = embedding.reference(encoder)
    source = embedding.current(shard, ref, out=run.out)
    work = _Work(run, settings, encoder, source, ref)
    return [_label(shard, given, work) for given in label_sets]


def wanted(given: Given, source: Commit, settings: LabelSettings) -> Fingerprint:
    """Return the fingerprint that labels must have; `source` is the embeddings they are of."""
    identity = [source.recipe, given.sha256, settings.top_k, _threshold(given, settings)]
    recipe = digest(["label", VERSION, layout.RECIPES, *identity])
    return Fingerprint(recipe, source.metadata["members"])


def _threshold(given: Given, settings: LabelSettings) -> float:
    own = given.label_set.threshold
    return settings.threshold if own is None else own


def _label(shard: Shard, given: Given, work: _Work) -> Outcome:
    started, source = time.time(), work.source
    fingerprint = wanted(given, source, work.settings)
    url = layout.labels(work.run.out, shard, label_set=given.label_set.name)
    found = rows.standing(url, fingerprint)
    if found.done:
        return _outcome(shard, "unchanged", found.done, started)
    kept = rows.live_rows(found.rows, work.live)
    todo = rows.missing(work.live, kept)
    made = _rows(todo, given, work)
    table = made if kept is None else rows.joined(kept, made)
    metadata = {
        "members": fingerprint.members,
        "label_set": canonical_json(given.label_set.model_dump(mode="json")),
        "label_set_sha256": given.sha256,
        "temperature": repr(_temperature(given, source)),
        "threshold": repr(_threshold(given, work.settings)),
        "fit": given.fitted.fit if given.fitted else "",
        "model_id": work.ref.model_id,
    }
    run_id = work.run.run_id
    commit = commits.publish(url, table, fingerprint=fingerprint, run_id=run_id, metadata=metadata)
    return _outcome(shard, "written", commit, started, computed=todo.num_rows)


def _temperature(given: Given, source: Commit) -> float:
    """Return what cosines are divided by: the model's, or the median of a fitted label set."""
    gains = [] if given.fitted is None else [one for one in given.fitted.gain_C.tolist() if one]
    return 1 / (median(gains) if gains else float(source.metadata["logit_scale"]))


def _outcome(
    shard: Shard, state: State, commit: Commit, started: float, *, computed: int = 0
) -> Outcome:
    name = commit.url.partition("/labelset=")[2].partition("/")[0]
    return committed(
        "label", shard, commit, state=state, started_at=started, computed=computed, of=name
    )


def _rows(todo: pa.Table, given: Given, work: _Work) -> pa.Table:
    """Return the rows of images that have none yet."""
    schema = tables.SCHEMAS["labels"]
    if todo.num_rows == 0:
        return schema.empty_table()
    from clipcap.encoding import choose_device
    from clipcap.labels.scoring import Scorer

    settings = work.settings
    asked = bank.of(given, work.source, out=work.run.out, encoder=work.encoder)
    scorer = Scorer(
        asked,
        top_k=settings.top_k,
        threshold=settings.threshold,
        device=choose_device(settings.device),
    )
    made = []
    for at in range(0, todo.num_rows, _ROWS):
        part = todo.slice(at, _ROWS)
        made.append(_table(part, scorer.best(tables.vectors(part)), given, work))
    return pa.concat_tables(made)


def _table(part: pa.Table, best: Best, given: Given, work: _Work) -> pa.Table:
    """Return the rows of the best labels of some images, in the order of the images."""
    image_R = pa.array(best.image_R)
    columns = {
        name: part[name].combine_chunks().take(image_R)
        for name in ("image_id", "key", "content_sha256")
    }
    same = {
        "label_set": given.label_set.name,
        "label_set_sha256": given.sha256,
        "model_id": work.ref.model_id,
        "created_at": datetime.now(UTC),
        "run_id": work.run.run_id,
    }
    index_R = pa.array(best.index_R)
    columns |= {
        "label": pa.array(given.label_set.names).take(index_R),
        "extra_json": _parents(given).take(index_R),
        "label_index": index_R,
        "rank": pa.array(best.rank_R),
        "score": pa.array(best.score_R),
        "similarity": pa.array(best.similarity_R),
        "margin": pa.array(best.margin_R),
        "accepted": pa.array(best.accepted_R),
    }
    return tables.from_columns(columns, same, tables.SCHEMAS["labels"])


def _parents(given: Given) -> pa.Array:
    """Return of each label what its rows say of its place in the taxonomy."""
    from clipcap.labels.tree import Tree

    labels = given.label_set.labels
    tree = Tree(labels)
    paths = [[labels[n].name for n in tree.path(place)[1:]] for place in range(len(labels))]
    return pa.array(
        [canonical_json({"parents": path}) if path else None for path in paths], pa.string()
    )
