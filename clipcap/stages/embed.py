"""Shard in, embeddings table out: one L2-normalised row per live image, sorted by key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from clipcap import commits, embedding, intake, layout, manifest, rows, tables
from clipcap.commits import Commit
from clipcap.embedding import Embedded, EmbedSettings, Speed
from clipcap.errors import ClipcapError
from clipcap.intake import Refused
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome, State, committed


def embed(shard: Shard, *, run: Run, settings: EmbedSettings, speed: Speed) -> Outcome:
    """Embed the live images of a shard; a shard already done costs two small reads and no model.

    An image that gives no finite embedding leaves the manifest and becomes a reject.

    Raises:
        StorageError: the tar does not hold what the manifest says.
    """
    started = time.time()
    ref = embedding.reference(settings)
    url = layout.embeddings(run.out, shard, model_id=ref.model_id)
    wanted = embedding.wanted(settings, shard, out=run.out)
    found = rows.standing(url, wanted)
    if found.done:
        return _outcome(shard, "unchanged", found.done, started, Embedded())
    live = tables.read(layout.manifest(run.out, shard))
    kept = rows.live_rows(found.rows, live)
    made = embedding.embed_rows(
        rows.missing(live, kept), shard, run=run, settings=settings, speed=speed
    )
    _require_working_model(made, ref.model_id, shard)
    if made.refused:
        _reject(made.refused, shard, run=run)
        wanted = embedding.wanted(settings, shard, out=run.out)
    scale = found.older if made.rows == [] and found.older else embedding.load(settings, speed)
    table = rows.joined(kept, tables.from_rows(made.rows, tables.embeddings_schema(ref.dim)))
    metadata = embedding.metadata(ref, embedding.scale_of(scale)) | {"members": wanted.members}
    commit = commits.publish(url, table, fingerprint=wanted, run_id=run.run_id, metadata=metadata)
    return _outcome(shard, "written", commit, started, made)


def _require_working_model(made: Embedded, model_id: str, shard: Shard) -> None:
    """Refuse to empty a shard because a model, a device or a number format is broken."""
    if len(made.refused) > 1 and not made.rows:
        raise ClipcapError(
            f"{model_id} gave no finite embedding for any of the {len(made.refused)} images of "
            f"{shard}: the model, the device or its number format is broken. Nothing was changed; "
            "try `--device cpu` or another model."
        )


def _outcome(shard: Shard, state: State, commit: Commit, started: float, made: Embedded) -> Outcome:
    return committed(
        "embed",
        shard,
        commit,
        state=state,
        started_at=started,
        computed=len(made.rows),
        rejected=len(made.refused),
        model_s=made.model_s,
        of=commit.metadata.get("model_id", ""),
        reasons=tuple(Counter(sample.reason for sample in made.refused).most_common()),
    )


def _reject(refused: Sequence[Refused], shard: Shard, *, run: Run) -> None:
    """Move images from a shard's manifest to its rejects, there first, so that nothing is lost."""
    new = [intake.reject_row(sample, shard, stage="embed", run=run) for sample in refused]
    leaving = {row["image_id"] for row in new}
    known = manifest.read_rejects(run.out, shard).to_pylist()
    old = [row for row in known if row["image_id"] not in leaving]  # an earlier try got so far
    manifest.publish_rejects([*old, *new], shard, run=run)
    manifest.retire(shard, run=run, live=leaving, rejects=set())
