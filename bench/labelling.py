"""Random embeddings and labels in; the CPU seconds and memory of labelling them all out.

    python -m bench.labelling --images 1000000 --labels 1000

The embeddings lie as the pipeline stores them, in shards; a label set of so many random vectors is
given as a fitted one, so that no text is encoded. The reference is what nobody can leave out, in
the same process on the same shards: the bare matrix product of float32 embeddings and labels, and
the bare write of the finished table with the same Parquet options. The stage reads the embeddings
as well. Each figure is the CPU time of one thread; product and write are measured shard by shard
between the stage's own work, so that noise meets both alike.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from clipcap import commits, embedding, layout, storage, tables
from clipcap.commits import Fingerprint
from clipcap.embedding import EmbedSettings
from clipcap.labels import bank
from clipcap.labels.bank import Given
from clipcap.labels.sets import LabelSet
from clipcap.layout import Run, Shard
from clipcap.models import EncoderRef
from clipcap.settings import digest
from clipcap.stages import label
from clipcap.stages.label import LabelSettings

DIM = 512
PER_SHARD = 8_192
SCALE = 100.0


def unit(count: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return random unit vectors."""
    found = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def label_set(count: int, model_sha256: str) -> Given:
    """Return a fitted label set of random vectors."""
    names = [f"label {n}" for n in range(count)]
    words = LabelSet.model_validate({"name": "random", "names": names})
    made = bank.in_words(words, unit(count, 1), scale=SCALE)
    return Given(words, digest(["random", count]), replace(made, model_sha256=model_sha256))


def embedded(run: Run, shard: Shard, ref: EncoderRef, number: int) -> None:
    """Write the embeddings of a shard as the embed stage would."""
    embedding_BD = unit(PER_SHARD, 100 + number).astype(np.float16).astype(np.float32)
    ids = [f"{number:08x}{n:024x}" for n in range(PER_SHARD)]
    columns = {
        "image_id": ids,
        "key": [f"{number:05d}_{n:05d}" for n in range(PER_SHARD)],
        "content_sha256": [digest(one) for one in ids],
        "model_id": ["random"] * PER_SHARD,
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(embedding_BD.ravel()), type=tables.vector_type(DIM)
        ),
        "embedding_norm": pa.array(np.ones(PER_SHARD, np.float32)),
        "run_id": [run.run_id] * PER_SHARD,
        "extra_json": pa.nulls(PER_SHARD, pa.string()),
    }
    table = pa.table(columns, schema=tables.embeddings_schema(DIM))
    metadata = {
        **embedding.metadata(ref, {"logit_scale": repr(SCALE)}),
        "members": digest(ids),
        "dim": str(DIM),
    }
    url = layout.embeddings(run.out, shard, model_id=ref.model_id)
    made = Fingerprint("r", digest(ids))
    commits.publish(url, table, fingerprint=made, run_id="r", metadata=metadata)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=1_000)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    encoder = EmbedSettings()
    ref = embedding.reference(encoder)
    given = label_set(chosen.labels, ref.sha256)
    if given.fitted is None:
        raise SystemExit("the label set must be fitted")
    vector_DC = torch.from_numpy(given.fitted.vector_CD).T.contiguous()
    spent = dict.fromkeys(("stage", "read", "product", "write"), 0.0)
    rows = 0
    with tempfile.TemporaryDirectory() as folder:
        run = Run("r", storage.canonical(folder), "2026-01-01")
        for number in range(-(-chosen.images // PER_SHARD)):
            shard = Shard(run.dt, f"s{number:05d}")
            embedded(run, shard, ref, number)
            began = time.process_time()
            (outcome,) = label.label(
                shard, [given], run=run, settings=LabelSettings(), encoder=encoder
            )
            spent["stage"] += time.process_time() - began
            rows += outcome.rows
            began = time.process_time()
            source = layout.embeddings(run.out, shard, model_id=ref.model_id)
            embedding_BD = torch.from_numpy(tables.vectors(tables.read(source)))
            spent["read"] += time.process_time() - began
            began = time.process_time()
            for part_BD in embedding_BD.split(1_024):
                part_BD @ vector_DC
            spent["product"] += time.process_time() - began
            table = tables.read(outcome.url)
            began = time.process_time()
            storage.write(outcome.url, tables.to_bytes(table, tables.metadata(table)))
            spent["write"] += time.process_time() - began
            storage.delete(outcome.url)
            storage.delete(source)
    bare = spent["product"] + spent["write"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print({name: round(seconds, 2) for name, seconds in spent.items()}, f"{rows:,} rows")
    computed = spent["stage"] - spent["read"]
    print(f"stage without reading / (product + write): {computed / bare:.2f}")
    print(f"stage / (product + write): {spent['stage'] / bare:.2f}")
    print(f"stage / (read + product + write): {spent['stage'] / (bare + spent['read']):.2f}")
    print(f"peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
