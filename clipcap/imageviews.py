"""Training images in, embeddings of augmented views of them out, kept shard by shard.

A view is one Parquet object of a shard below `_training/views`, written whole: a killed run goes
on with the next one, and another training on the same images finds them all. Rows are matched by
image and content; a seed is made of an image's content and the number of the view.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import commits, embedding, layout, manifest, pairs, passes, rows, storage, tables
from clipcap.commits import Fingerprint
from clipcap.embedder import Embedded
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.layout import Run
from clipcap.models import EncoderRef
from clipcap.pairs import Lying
from clipcap.passes import Job, Looked
from clipcap.settings import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from clipcap.captioner import Captioner

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Raised by hand when `clipcap.augmented` makes another picture of the same seed."""
VIEWS: Final = "views"
"""The column of V embeddings of each image, one behind the other."""
NORMS: Final = "view_norms"
_COLUMNS: Final = ["image_id", "embedding", "embedding_norm"]


def added(
    found: pa.Table, run: Run, *, encoder: EmbedSettings, speed: Speed, views: int
) -> pa.Table:
    """Return pairs with the columns `VIEWS` and `NORMS`: embeddings of `views` views of each image.

    Where a view gives no embedding, the image's own stands in its place, and the log says so.

    Args:
        found: pairs, as `pairs.Pairs.table`.
        run: whose output the images are of.
        encoder: what made the embeddings.
        speed: where it runs.
        views: how many, 1 or more.

    Raises:
        SettingsError: the embeddings came without images.
        StorageError: the images cannot be read.
    """
    if found["shard"].null_count:
        raise SettingsError(
            "`views` are made of images, but the embeddings came without. Set `views: 0`."
        )
    work = _Work(run, encoder, speed, embedding.reference(encoder))
    places = list(pairs.lying(found, run.out))
    jobs = (job for place in places for job in work.jobs(place, views))
    work.do(jobs, images=views * found.num_rows)
    work.remove_left_over()
    return work.joined(found, places, views)


@dataclass(frozen=True, slots=True)
class _Work:
    """What all views of a call have in common."""

    run: Run
    encoder: EmbedSettings
    speed: Speed
    ref: EncoderRef

    @property
    def folder(self) -> str:
        """Where the views by this encoder lie."""
        return layout.views(self.run.out, model_id=self.ref.model_id)

    def url(self, place: Lying, view: int) -> str:
        """Where one view of the images of a shard lies."""
        return layout.in_folder(f"{self.folder}/view={view}", place.shard)

    def jobs(self, place: Lying, views: int) -> Iterator[Job]:
        """Yield the views of a shard that are not there yet."""
        members = digest([place.rows[name].to_pylist() for name in ("image_id", "content_sha256")])
        recipe = embedding.recipe(self.encoder, self.ref)
        for view in range(1, views + 1):
            wanted = Fingerprint(digest(["view", VERSION, recipe, view]), members)
            job = passes.job(self.url(place, view), wanted, place.rows, place.tar, view=view)
            if job is not None:
                yield job

    def do(self, jobs: Iterator[Job], *, images: int) -> None:
        """Embed and write views; the encoder is loaded only where there are some to make."""
        looked = Looked(self.encoder, self.speed, self.ref, self.run.run_id)
        for job, made in passes.embedded(jobs, looked, images=images):
            self._write(job, made)

    def _write(self, job: Job, made: Embedded) -> None:
        if made.refused:
            log.warning(
                "%s: %d images give no view, their own embedding stands in: %s", job.url,
                len(made.refused), made.refused[0].error,
            )  # fmt: skip
        table = rows.joined(job.kept, made.table(self.ref.dim))
        told = embedding.metadata(self.ref, {}) | {"view": str(job.view)}
        commits.publish(
            job.url, table, fingerprint=job.wanted, run_id=self.run.run_id, metadata=told
        )

    def remove_left_over(self) -> None:
        """Remove the views of shards that are no more."""
        live = set(manifest.shards(self.run.out))
        for found in storage.listed(self.folder):
            if layout.shard_of(found.url) not in live:
                storage.delete(found.url)

    def joined(self, found: pa.Table, places: Sequence[Lying], views: int) -> pa.Table:
        """Return pairs beside their views."""
        view_NVD = np.repeat(tables.vectors(found)[:, None], views, axis=1)
        norm_NV = np.repeat(found["embedding_norm"].to_numpy()[:, None], views, axis=1)
        names = found["image_id"].combine_chunks()
        for place in places:
            for view in range(views):
                table = tables.read(self.url(place, view + 1), _COLUMNS)
                at = pc.index_in(table["image_id"], value_set=names).to_numpy()
                view_NVD[at, view] = tables.vectors(table)
                norm_NV[at, view] = table["embedding_norm"].to_numpy()
        for name, numbers in ((VIEWS, view_NVD), (NORMS, norm_NV)):
            flat, width = pa.array(numbers.reshape(-1)), numbers[0].size
            column = pa.FixedSizeListArray.from_arrays(flat, type=tables.vector_type(width))
            found = found.append_column(name, column)
        return found


def vectors(found: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `view_NVD` and their norms as `norm_NV`, of pairs that have views."""
    norm_NV, view_NX = (
        column.flatten().to_numpy().reshape(found.num_rows, -1)
        for column in (found[name].combine_chunks() for name in (NORMS, VIEWS))
    )
    return view_NX.reshape(*norm_NV.shape, -1), norm_NV


def behind(scaled_ND: Tensor, found: pa.Table, captioner: Captioner) -> Tensor:
    """Return embeddings, in the mapper's own scale, with views behind each: `scaled_NVD`.

    Rows of texts, which come after those of the pairs, have no views but themselves.
    """
    import torch  # noqa: PLC0415 - pairs are gathered without

    view_NVD, norm_NV = map(torch.tensor, vectors(found))
    view_XD = captioner.scaled(view_NVD.flatten(0, 1), norm_NV.flatten())
    scaled_NVD = scaled_ND[:, None].repeat(1, 1 + norm_NV.shape[1], 1)
    scaled_NVD[: len(norm_NV), 1:] = view_XD.view(view_NVD.shape)
    return scaled_NVD
