"""Images of an output and a grid in, embeddings of each image's windows out, kept shard by shard.

The tables lie in a folder of the caller's: a Parquet object for each shard, K rows for each image,
row by row of the grid. Rows are matched by image and content, so that a second call looks at what
is new or was changed, and drops what is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import commits, embedding, layout, manifest, passes, rows, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.embedder import Embedded
from clipcap.errors import ClipcapError, NotFoundError
from clipcap.feed import WINDOW
from clipcap.layout import Shard
from clipcap.passes import Job, Looked
from clipcap.preprocessing import Preprocess
from clipcap.settings import digest
from clipcap.windows import Grid

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Raised by hand when the meaning of a row changes."""
OF: Final = "crops_of"
"""What the footer has the output's URL as."""
BOX: Final = ("x0", "y0", "x1", "y1")
"""Left, top, right and bottom of a window, as shares of the upright picture."""
_IDENTITY: Final = ("image_id", "key", "content_sha256", "model_id")
_ORDER: Final = [(name, "ascending") for name in ("key", "row", "column")]


def schema(dim: int) -> pa.Schema:
    """Return the schema of the crops of a model of width `dim`."""
    return pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in _IDENTITY),
            *(pa.field(name, pa.int32(), nullable=False) for name in ("row", "column")),
            *(pa.field(name, pa.float32(), nullable=False) for name in BOX),
            pa.field("embedding", tables.vector_type(dim), nullable=False),
            pa.field("embedding_norm", pa.float32(), nullable=False),
        ]
    )


@dataclass(slots=True)
class Made:
    """What became of a call, in images and tables."""

    computed: int = 0
    without: int = 0
    """Live images whose windows cannot be looked at."""
    written: int = 0
    unchanged: int = 0


@dataclass(frozen=True, slots=True)
class Crops:
    """The crops of the images of an output by one encoder, through one grid."""

    out: str
    folder: str
    looked: Looked
    grid: Grid

    def url(self, shard: Shard) -> str:
        """Return where the crops of a shard lie."""
        return layout.in_folder(f"{self.folder}/crops", shard)

    def make(self, sources: Mapping[Shard, Commit]) -> Made:
        """Bring the crops of shards up to date; the encoder is loaded if there is something to do.

        Args:
            sources: the embeddings of each shard: of its images are the crops.

        Raises:
            StorageError: images cannot be read.
            ClipcapError: none of the images of a shard gives anything: the machine is at fault.
        """
        done = Made()
        jobs = self._jobs(sources, done)
        images = sum(source.rows for source in sources.values())
        for job, made in passes.embedded(jobs, self.looked, images=images, grid=self.grid):
            self._write(job, made, done)
        return done

    def _jobs(self, sources: Mapping[Shard, Commit], done: Made) -> Iterator[Job]:
        recipe = self._recipe
        for shard, source in sources.items():
            listed = commits.find(layout.manifest(self.out, shard))
            if listed is None:
                raise NotFoundError(f"The shard {shard} went while its images were looked at.")
            members = digest([listed.metadata["members"], source.metadata["members"]])
            wanted = Fingerprint(recipe, members)
            there = commits.find(self.url(shard))
            if there is not None and there.fingerprint == wanted.value:
                done.unchanged += 1
                continue
            embedded = tables.read(source.url, ["image_id", "content_sha256"])
            live = rows.live_rows(tables.read(listed.url), embedded)
            tar = manifest.tar_url(self.out, shard, listed.metadata)
            if live is not None and (job := passes.job(self.url(shard), wanted, live, tar)):
                yield job

    @property
    def _recipe(self) -> str:
        made_by = embedding.recipe(self.looked.encoder, self.looked.ref)
        grid = [self.grid.rows, self.grid.columns, self.grid.overlap]
        return digest(["crops", VERSION, layout.RECIPES, made_by, grid])

    def _write(self, job: Job, made: Embedded, done: Made) -> None:
        """Write the crops of a shard: of the images all of whose windows gave an embedding."""
        if job.todo.num_rows > 1 and not made.count:
            raise ClipcapError(
                f"None of the {job.todo.num_rows} images of {job.tar} gives a crop "
                f"({made.refused[0].error}): the model, the device or a limit is at fault. "
                "Nothing was written; try `--device cpu`."
            )
        if made.refused:
            log.warning("%s: some images give no crops: %s", job.url, made.refused[0].error)
        new = self._rows(job, made)
        both = new if job.kept is None else pa.concat_tables([job.kept.cast(new.schema), new])
        images = both.num_rows // self.grid.count
        without = job.live.num_rows - images
        told = {
            OF: self.out,
            "members": job.wanted.members,
            "rows": str(self.grid.rows),
            "columns": str(self.grid.columns),
            "overlap": str(self.grid.overlap).lower(),
            **embedding.metadata(self.looked.ref, {}),
        }
        wanted = job.wanted
        if without:  # the next call tries again: of the embed stage they were no rejects
            wanted = replace(wanted, members=digest([wanted.members, "incomplete"]))
        table = both.sort_by(_ORDER)
        commits.publish(job.url, table, fingerprint=wanted, run_id="", metadata=told)
        done.written += 1
        done.without += without
        done.computed += new.num_rows // self.grid.count

    def _rows(self, job: Job, made: Embedded) -> pa.Table:
        wanted = schema(self.looked.ref.dim)
        if not made.count:
            return wanted.empty_table()
        found = _whole(pa.concat_tables(made.tables), self.grid.count)
        boxes = self._boxes(job.todo)
        images = found["image_id"].to_pylist()[:: self.grid.count]
        box_R4 = np.array([boxes[image_id] for image_id in images], np.float32).reshape(-1, 4)
        window_R = found[WINDOW].to_numpy()
        columns = {name: found[name] for name in (*_IDENTITY, "embedding", "embedding_norm")}
        columns["row"] = pa.array(window_R // self.grid.columns)
        columns["column"] = pa.array(window_R % self.grid.columns)
        columns |= {name: pa.array(box_R4[:, n]) for n, name in enumerate(BOX)}
        return pa.table({name: columns[name] for name in wanted.names}, schema=wanted)

    def _boxes(self, todo: pa.Table) -> dict[str, list[tuple[float, float, float, float]]]:
        """Return the windows of each image as shares of it."""
        preprocess = Preprocess.of(self.looked.ref.preprocess)
        ratio = preprocess.width / preprocess.height
        found = {}
        for row in todo.select(["image_id", "width", "height"]).to_pylist():
            wide, high = row["width"], row["height"]
            found[row["image_id"]] = [
                (left / wide, top / high, right / wide, bottom / high)
                for left, top, right, bottom in self.grid.boxes(wide, high, ratio)
            ]
        return found


def _whole(found: pa.Table, count: int) -> pa.Table:
    """Return the rows of the images that have one for each of `count` windows."""
    counted = pc.value_counts(found["image_id"].combine_chunks())
    whole = counted.field("values").filter(pc.equal(counted.field("counts"), count))
    return found.filter(pc.is_in(found["image_id"], value_set=whole))
