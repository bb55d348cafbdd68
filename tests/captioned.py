"""Captions and their scores in, an output that holds them out, without any model or image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipcap import commits, embedding, keys, layout, manifest, review, storage, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.layout import Run, Shard
from clipcap.review import ReviewSettings
from clipcap.stages import caption
from tests.captioners import DIM_CLIP
from tests.nights import Tiny

NOW = datetime(2026, 11, 20, tzinfo=UTC)
RUN = "made-run"


def write(
    out: Path,
    tiny: Tiny,
    said: Sequence[Mapping[str, Any]],
    *,
    shards: int = 2,
    embedding_ND: NDArray[np.float32] | None = None,
) -> Run:
    """Write manifest, embeddings and captions of as many images as there are rows in `said`.

    A row says `caption_raw`, `clip_score`, `logprob_mean` and more columns of the captions table;
    the image is `photo-N.jpg`.
    """
    run = Run(RUN, storage.canonical(str(out)), "2026-11-20")
    vector_ND = _vectors(len(said)) if embedding_ND is None else embedding_ND
    for part in range(shards):
        of = range(part, len(said), shards)
        shard = Shard(run.dt, f"part-{part}")
        live = _manifest(shard, of, run)
        source = _embeddings(shard, live, vector_ND[list(of)], run, tiny)
        _captions(shard, live, [said[n] for n in of], source, run, tiny)
    return run


def uri(number: int) -> str:
    """Return the address of an image."""
    return f"s3://photos/photo-{number:03d}.jpg"


def _vectors(count: int) -> NDArray[np.float32]:
    vector_ND = np.random.default_rng(0).normal(size=(count, DIM_CLIP))
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return vector_ND.astype(np.float32)


def _manifest(shard: Shard, numbers: Sequence[int], run: Run) -> pa.Table:
    rows = [
        {
            "image_id": keys.image_id(uri(n)), "key": f"photo-{n:03d}", "source_uri": uri(n),
            "content_sha256": f"{n:064x}", "shard": shard.name, "member": f"photo-{n:03d}.jpg",
            "member_offset": 512 * n, "member_bytes": 1, "media_type": "image/jpeg", "width": 1,
            "height": 1, "original_width": 1, "original_height": 1, "first_seen_at": NOW,
            "run_id": run.run_id,
        }
        for n in numbers
    ]  # fmt: skip
    table = tables.from_rows(rows, tables.SCHEMAS["manifest"])
    members = manifest.members(table)
    _publish(layout.manifest(run.out, shard), table, Fingerprint("made", members), run, {})
    return table


def _publish(
    url: str, table: pa.Table, fingerprint: Fingerprint, run: Run, footer: Mapping[str, str]
) -> Commit:
    metadata = {"members": fingerprint.members, **footer}
    return commits.publish(
        url, table, fingerprint=fingerprint, run_id=run.run_id, metadata=metadata
    )


def _embeddings(
    shard: Shard, live: pa.Table, vector_ND: NDArray[np.float32], run: Run, tiny: Tiny
) -> Commit:
    ref = embedding.reference(tiny.encoder)
    rows = [
        {
            **row, "model_id": ref.model_id, "embedding": vector_D, "embedding_norm": 1.0,
            "run_id": run.run_id,
        }
        for row, vector_D in zip(_identity(live), vector_ND.tolist(), strict=True)
    ]  # fmt: skip
    table = tables.from_rows(rows, tables.embeddings_schema(ref.dim))
    fingerprint = Fingerprint("embedded", manifest.members(live))
    footer = embedding.metadata(ref, {"logit_scale": "100.0"})
    url = layout.embeddings(run.out, shard, model_id=ref.model_id)
    return _publish(url, table, fingerprint, run, footer)


def _identity(live: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = live.select(["image_id", "key", "content_sha256"]).to_pylist()
    return rows


def _captions(
    shard: Shard,
    live: pa.Table,
    said: Sequence[Mapping[str, Any]],
    source: Commit,
    run: Run,
    tiny: Tiny,
) -> None:
    """Write captions as a run with the settings of `tiny` but without rules has left them."""
    plain = tiny.captioner.model_copy(update={"review": ReviewSettings(measured=False)})
    chosen = caption.choose(plain, tiny.encoder)
    uris = live["source_uri"].to_pylist()
    rows = [
        {
            "status": "ok", "finish_reason": "stop", "token_count": 3,
            "captioner_id": chosen.card.captioner_id, "captioner_sha256": chosen.sha256,
            "created_at": NOW, "run_id": run.run_id, **row, "source_uri": uri, **told,
        }
        for row, uri, told in zip(_identity(live), uris, said, strict=True)
    ]  # fmt: skip
    table = tables.from_rows(rows, tables.SCHEMAS["captions"])
    table = review.judged(table, chosen.rules, chosen.settings.rank_by)
    wanted = Fingerprint(caption.recipe(chosen, source), manifest.members(live))
    url = layout.captions(run.out, shard, captioner_id=chosen.card.captioner_id)
    footer = {"captioner_id": chosen.card.captioner_id, "captioner_sha256": chosen.sha256}
    _publish(url, table, wanted, run, footer)
