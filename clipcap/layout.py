"""A run, a shard or a table in, the URL of its object out: every path of an output is made here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from clipcap.keys import path_name
from clipcap.settings import digest

CONTRACT: Final = 1
"""Version of the output contract; a change of a table or a path raises it."""
RECIPES: Final = 1
"""Stands in every recipe and never changes: a new contract makes nothing anew."""

Table = Literal["manifest", "embeddings", "captions", "labels", "rejects", "runs", "shard_runs"]
PER_SHARD: Final[tuple[Table, ...]] = ("manifest", "embeddings", "captions", "labels", "rejects")
_MERGED: Final = "-m"
_OF_SHARD: Final = re.compile(
    r"((manifest|rejects|embeddings/model=[^/]+|captions/captioner=[^/]+|labels/labelset=[^/]+)"
    r"/dt=\d{4}-\d{2}-\d{2}/[A-Za-z0-9_-]+\.parquet"
    r"|shards/dt=\d{4}-\d{2}-\d{2}/[A-Za-z0-9_-]+\.tar)"
)


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """The name of one shard: the UTC date of the run that made it, and its own name."""

    dt: str
    name: str

    def __str__(self) -> str:
        return f"{self.dt}/{self.name}"

    @property
    def generation(self) -> int:
        """How often its images were merged into a new shard; see `merged`."""
        return int(self.name.partition(_MERGED)[2] or 0)


def merged(dt: str, sha256: str, sources: Iterable[Shard]) -> Shard:
    """Return the shard that the images of others are merged into; `sha256` is of what it holds.

    Where an image is in both, for a moment or after a crash, that of the higher generation counts.
    """
    generation = 1 + max(shard.generation for shard in sources)
    return Shard(dt, f"{sha256[:16]}{_MERGED}{generation}")


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a flow: what every object that it writes is signed with.

    `dt` is the logical date (the scheduled start, not the clock); `out` is a canonical URL.
    """

    run_id: str
    out: str
    dt: str


def tar(out: str, shard: Shard) -> str:
    """Return the URL of a shard's tar."""
    return f"{tars(out)}/dt={shard.dt}/{shard.name}.tar"


def tars(out: str) -> str:
    """Return the URL of the folder of all tars."""
    return f"{out}/shards"


def manifest(out: str, shard: Shard) -> str:
    """Return the URL of a shard's manifest: the object that makes its tar count."""
    return in_folder(table(out, "manifest"), shard)


def rejects(out: str, shard: Shard) -> str:
    """Return the URL of the images of a shard that were left out."""
    return in_folder(table(out, "rejects"), shard)


def embeddings(out: str, shard: Shard, *, model_id: str) -> str:
    """Return the URL of a shard's embeddings by one model."""
    return in_folder(f"{table(out, 'embeddings')}/model={path_name(model_id)}", shard)


def captions(out: str, shard: Shard, *, captioner_id: str) -> str:
    """Return the URL of a shard's captions by one captioner."""
    return in_folder(f"{table(out, 'captions')}/captioner={path_name(captioner_id)}", shard)


def labels(out: str, shard: Shard, *, label_set: str) -> str:
    """Return the URL of a shard's labels from one label set."""
    return in_folder(f"{table(out, 'labels')}/labelset={path_name(label_set)}", shard)


def table(out: str, name: Table) -> str:
    """Return the URL of the folder that holds a table."""
    return f"{out}/{name}"


def in_folder(folder: str, shard: Shard) -> str:
    """Return the URL of a shard's object in a table's folder (that of one model, for example)."""
    return f"{folder}/dt={shard.dt}/{shard.name}.parquet"


def folder_of(url: str) -> str:
    """Return the folder that `in_folder` made an object's URL from."""
    return url.rpartition("/dt=")[0]


def shard_of(url: str) -> Shard:
    """Return the shard that a table's or tar's URL belongs to."""
    folder, _, name = url.rpartition("/")
    return Shard(dt=folder.rpartition("/dt=")[2], name=name.partition(".")[0])


def is_of_shard(path: str) -> bool:
    """Tell whether a path below an output is that of a table or tar of a shard."""
    return _OF_SHARD.fullmatch(path) is not None


def runs(run: Run) -> str:
    """Return the URL of a run's own row."""
    return f"{run.out}/runs/dt={run.dt}/{run.run_id}.parquet"


def shard_runs(run: Run) -> str:
    """Return the URL of what a run did to each shard."""
    return f"{run.out}/shard_runs/dt={run.dt}/{run.run_id}.parquet"


def report(run: Run) -> str:
    """Return the URL of a run's report page."""
    return f"{reports(run.out)}/{run.run_id}/index.html"


def reports(out: str) -> str:
    """Return the URL of the folder of report pages."""
    return f"{out}/reports"


def plan(run: Run, shard: Shard) -> str:
    """Return the URL of the samples that a shard still to be written shall hold."""
    return f"{plans_of(run)}/{shard.name}.parquet"


def group(run: Run, name: str) -> str:
    """Return the URL of what became of a group of shards that another process took."""
    return f"{plans_of(run)}/groups/{name}.json"


def plans_of(run: Run) -> str:
    """Return the URL of the folder of one run's plans."""
    return f"{plans(run.out)}/{run.run_id}"


def plans(out: str) -> str:
    """Return the URL of the folder of plans; empty but while a run is under way or was killed."""
    return f"{out}/_plans"


def leases(out: str) -> str:
    """Return the URL of the folder of who works, or worked last, on an output."""
    return f"{out}/_lease"


def lease(out: str, number: int) -> str:
    """Return the URL of one lease; numbers begin with 1, and the highest one holds."""
    return f"{leases(out)}/{number:012d}.json"


def label_embeddings(out: str, *, model_id: str, digest: str) -> str:
    """Return the URL of the text embeddings of one label set by one model."""
    return f"{out}/_labelsets/model={path_name(model_id)}/{digest}.parquet"


def captioner(out: str, name: str) -> str:
    """Return the URL of the folder of a captioner trained on this output."""
    return f"{captioners(out)}/{path_name(name)}"


def captioners(out: str) -> str:
    """Return the URL of the folder of all captioners trained on this output."""
    return f"{out}/captioners"


def promotions(out: str) -> str:
    """Return the URL of the folder of what was promoted, when and why: the last one holds."""
    return f"{captioners(out)}/_promoted"


def promotion(out: str, number: int) -> str:
    """Return the URL of one promotion; numbers begin with 1."""
    return f"{promotions(out)}/{number:06d}.json"


def promotion_scores(out: str, number: int) -> str:
    """Return the URL of the score file that a promotion was judged by."""
    return f"{promotions(out)}/{number:06d}.parquet"


def training(out: str, name: str) -> str:
    """Return the URL of the state that a killed training goes on from; gone when it is done."""
    return f"{trainings(out)}/{path_name(name)}.safetensors"


def trainings(out: str) -> str:
    """Return the URL of the folder of what trainings leave until they are done."""
    return f"{out}/_training"


def views(out: str, *, model_id: str) -> str:
    """Return the URL of the folder of embeddings of augmented views, of images to train on."""
    return f"{trainings(out)}/views/model={path_name(model_id)}"


def run_manifest(out: str, run_id: str) -> str:
    """Return the URL of the list of every object that a run left standing."""
    return f"{run_manifests(out)}/{run_id}.json"


def run_manifests(out: str) -> str:
    """Return the URL of the folder of the lists of whole runs."""
    return f"{out}/_manifests"


def latest(out: str) -> str:
    """Return the URL of the name of the newest whole run."""
    return f"{out}/_latest.json"


def success(out: str) -> str:
    """Return the URL of the marker that other tools wait for; written last."""
    return f"{out}/_SUCCESS"


def front(
    out: str, name: Literal["README.md", "contract.json", "views.sql", "croissant.json"]
) -> str:
    """Return the URL of one of the files that explain an output to its readers."""
    return f"{out}/{name}"


def retirement(run: Run, shard: Shard) -> str:
    """Return the URL of the list of images that shall leave a shard."""
    return f"{plans_of(run)}/{shard.dt}_{shard.name}.retire.json"


def listings(out: str, source: str) -> str:
    """Return the URL of the folder of what the containers of a source hold."""
    return f"{all_listings(out)}/{digest(source)[:16]}"


def all_listings(out: str) -> str:
    """Return the URL of the folder of what the containers of all sources hold."""
    return f"{out}/_listings"


def listing(out: str, source: str, *, container: str, etag: str) -> str:
    """Return the URL of what one version of a container, such as a tar, holds."""
    return f"{listings(out, source)}/{digest([container, etag])[:32]}.parquet"


def index(out: str) -> str:
    """Return the URL of the folder of what manifests hold, in short; derived, and never trusted."""
    return f"{out}/_index"


def drifts(out: str) -> str:
    """Return the URL of the folder of what each date took in, in numbers; derived from tables."""
    return f"{out}/_drift"


def drift(out: str, dt: str) -> str:
    """Return the URL of what one date took in, in numbers."""
    return f"{drifts(out)}/{dt}.json"


def canaries(out: str, *, model_id: str, recipe: str) -> str:
    """Return the URL of the embeddings that canary images had when they were seen first."""
    return f"{out}/_canaries/model={path_name(model_id)}/{recipe[:32]}.parquet"


def forgotten(out: str) -> str:
    """Return the URL of the folder of what was taken out of an output and must not come back."""
    return f"{out}/_forgotten"


def forgotten_record(out: str, digest: str) -> str:
    """Return the URL of one list of what must not come back."""
    return f"{forgotten(out)}/{digest[:32]}.json"


def unfinished(out: str) -> str:
    """Return the URL of the folder of what is being taken out; empty but then, or after a kill."""
    return f"{forgotten(out)}/unfinished"
