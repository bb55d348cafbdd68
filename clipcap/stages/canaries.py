"""Images that must keep their labels in; what the night's model and label sets make of them out.

They are embedded anew every night, as the night's own images will be: by the same weights, pixels
and number format. What the same recipe made of them when it saw them first is kept in the output.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from clipcap import embedding, layout, stability, storage, tables
from clipcap.canaryfiles import Wanted
from clipcap.commits import Commit
from clipcap.embedder import Embedded, Embedder
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import DriftError, NotFoundError, SettingsError
from clipcap.feed import Part
from clipcap.labels import bank
from clipcap.labels.bank import Given
from clipcap.layout import Run
from clipcap.stability import NONE, Canary, Drift, DriftSettings, Level
from clipcap.stages.label import LabelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.scoring import Best

    Vectors = dict[str, NDArray[np.float32]]

log = logging.getLogger(__name__)

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Judges:
    """Whose labels the canaries must keep: the models of the night."""

    encoder: EmbedSettings
    speed: Speed
    label: LabelSettings


def look(wanted: Sequence[Wanted], judges: Judges, *, run: Run, settings: DriftSettings) -> Drift:
    """Embed and label canaries; return what became of each.

    Unless one of them stops the night, what images gave that were not seen before is kept.

    Raises:
        SettingsError: an image is not there, or cannot be read as one.
    """
    digests = dict[str, str]()
    with tempfile.NamedTemporaryFile(prefix="clipcap-canaries-") as file:
        rows = _gathered(wanted, digests, file)
        embedder: Embedder[None] = Embedder(
            judges.encoder, judges.speed, run_id=run.run_id, images=len(rows)
        )
        todo = tables.from_rows(rows, tables.SCHEMAS["manifest"])
        with closing(embedder.embedded([Part(None, file.name, todo)])) as embedded:
            made = next(embedded)[1]
    _require_all(made, len(rows))
    table = made.table(embedder.encoder.dim)
    vectors: Vectors = dict(
        zip(table["content_sha256"].to_pylist(), tables.vectors(table), strict=True)
    )
    ref = embedding.reference(judges.encoder)
    scale = embedding.scale_of(embedder.encoder)
    source = Commit(run.out, 0, "", "", embedding.metadata(ref, scale))
    recipe = embedding.recipe(judges.encoder, ref)
    url = layout.canaries(run.out, model_id=ref.model_id, recipe=recipe)
    first = {} if settings.accept == "from-now-on" else _first(url)
    judge = _Judge(judges, source, run.out, settings)
    found = [
        judge.judged(one, vectors[digests[one.url]], first.get(digests[one.url])) for one in wanted
    ]
    drift = Drift(canaries=tuple(found))
    for one in drift.moved:
        log.warning("canary %s: %s.", one.image, one.why)
    if drift.level != "stop" and first.keys() != vectors.keys():
        _keep(url, {name: first.get(name, vector) for name, vector in vectors.items()})
    return drift


def _gathered(
    wanted: Sequence[Wanted], digests: dict[str, str], file: IO[bytes]
) -> list[dict[str, Any]]:
    """Put the bytes of the images into one file, each once; return where each lies."""
    rows: dict[str, dict[str, Any]] = {}
    offset = 0
    for one in wanted:
        if one.url in digests:
            continue
        try:
            data = storage.read(one.url)
        except NotFoundError as error:
            raise SettingsError(
                f"The canary {one.image} must be an image, but there is none at {one.url}. Put it "
                "back, or take its line out of the file of canaries."
            ) from error
        sha256 = digests[one.url] = hashlib.sha256(data).hexdigest()
        if sha256 in rows:
            continue
        file.write(data)
        rows[sha256] = {
            "image_id": sha256[:32], "key": sha256[:32], "content_sha256": sha256,
            "source_uri": one.image, "source_bytes": len(data),
            "member": one.image, "member_offset": offset, "member_bytes": len(data),
        }  # fmt: skip
        offset += len(data)
    file.flush()
    return list(rows.values())


def _require_all(made: Embedded, images: int) -> None:
    if made.failure is not None:
        raise made.failure
    if made.count < images:
        first = made.refused[0]
        raise SettingsError(
            f"Every canary must be an image that can be embedded, but {len(made.refused)} of "
            f"{images} cannot: {first.todo.sample.source_uri} ({first.reason}: {first.error})."
        )


def _first(url: str) -> Vectors:
    """Return what the images gave when they were seen first, by content."""
    try:
        table = tables.read(url)
    except NotFoundError:
        return {}
    return dict(zip(table["content_sha256"].to_pylist(), tables.vectors(table), strict=True))


def _keep(url: str, vectors: Vectors) -> None:
    flat = pa.array(np.concatenate(list(vectors.values())))
    width = tables.vector_type(len(next(iter(vectors.values()))))
    embedded = pa.FixedSizeListArray.from_arrays(flat, type=width)
    table = pa.table({"content_sha256": list(vectors), "embedding": embedded})
    storage.write(url, tables.to_bytes(table, {}))


class _Judge:
    """Says what becomes of a canary."""

    def __init__(self, judges: Judges, source: Commit, out: str, settings: DriftSettings) -> None:
        from clipcap.encoding import choose_device
        from clipcap.labels.scoring import Scorer

        self._settings = settings
        self._given: dict[str, Given] = {}
        self._scorers: dict[str, Scorer] = {}
        for name in judges.label.label_sets:
            given = bank.load(name)
            asked = bank.of(given, source, out=out, encoder=judges.encoder)
            self._given[given.label_set.name] = given
            self._scorers[given.label_set.name] = Scorer(
                asked,
                top_k=1,
                threshold=judges.label.threshold,
                device=choose_device(judges.label.device),
            )

    def judged(
        self, wanted: Wanted, vector_D: NDArray[np.float32], first_D: NDArray[np.float32] | None
    ) -> Canary:
        """Return what was made of one canary; `first_D` is what it gave at first."""
        best = self._scorers[wanted.label_set].best(vector_D[None])
        found, score, holds = self._answer(wanted, best)
        distance = None if first_D is None else max(0.0, 1 - float(_cosine(vector_D, first_D)))
        levels: list[Level] = [stability.level(distance or 0.0, self._settings.canary_embedding)]
        why = []
        if levels[0] != "ok":
            why.append(f"its embedding is {distance:.2g} (1 - cosine) from what it was at first")
        if not holds:
            levels.append(self._settings.canary_label)
            must, is_now = (one or "none of these" for one in (wanted.label, found))
            why.append(f"{wanted.label_set} must say {must}, but says {is_now} ({score:.2f})")
        level = stability.worst(levels)
        if self._settings.accept and level == "stop":
            level = "warn"
        return Canary(
            image=wanted.image,
            label_set=wanted.label_set,
            label=wanted.label,
            found=found,
            score=score,
            distance=distance,
            level=level,
            why="; ".join(why) if level != "ok" else "",
        )

    def _answer(self, wanted: Wanted, best: Best) -> tuple[str, float, bool]:
        """Return the label of an image, its score, and whether it is what it must be, or a kind."""
        labels = self._given[wanted.label_set].label_set.labels
        at = int(np.flatnonzero(best.rank_R == 1)[0])
        score = float(best.score_R[at])
        if not best.accepted_R[at]:
            return NONE, score, wanted.label == NONE
        path = self._scorers[wanted.label_set].tree.path(int(best.index_R[at]))
        names = [labels[place].name for place in path]
        return names[0], score, wanted.label in names


def _cosine(one_D: NDArray[np.float32], other_D: NDArray[np.float32]) -> float:
    one, other = one_D.astype(np.float64), other_D.astype(np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def require_kept(found: Drift) -> None:
    """Do nothing where no canary stops the night.

    Raises:
        DriftError: one does.
    """
    stopped = [one for one in found.canaries if one.level == "stop"]
    if stopped:
        lines = "\n  ".join(f"{one.image}: {one.why}" for one in stopped[:_SHOWN])
        raise DriftError(
            f"Stopped: {len(stopped)} of {len(found.canaries)} canaries are not what they must "
            f"be:\n  {lines}\n"
            "Nothing was taken in, nothing is published. Was the model, its settings, a library or "
            "a driver changed? If this is right, change the file of canaries, or run again with "
            "--accept-drift."
        )
