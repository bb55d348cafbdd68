"""A run, a shard or a table in, the URL of its object out: every path of an output is made here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from clipcap.keys import path_name
from clipcap.settings import digest

CONTRACT: Final = 1
"""Version of the output contract; a change of a table, a path or a fingerprint raises it."""

Table = Literal["manifest", "embeddings", "captions", "labels", "rejects", "runs", "shard_runs"]
PER_SHARD: Final[tuple[Table, ...]] = ("manifest", "embeddings", "captions", "labels", "rejects")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """The name of one shard: the UTC date of the run that made it, and its own name."""

    dt: str
    name: str

    def __str__(self) -> str:
        return f"{self.dt}/{self.name}"


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a flow: what every object that it writes is signed with.

    `dt` is the logical date (the scheduled start, not the clock); `out` is the canonical URL of the
    output.
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


def runs(run: Run) -> str:
    """Return the URL of a run's own row."""
    return f"{run.out}/runs/dt={run.dt}/{run.run_id}.parquet"


def shard_runs(run: Run) -> str:
    """Return the URL of what a run did to each shard."""
    return f"{run.out}/shard_runs/dt={run.dt}/{run.run_id}.parquet"


def report(run: Run) -> str:
    """Return the URL of a run's report page."""
    return f"{run.out}/reports/{run.run_id}/index.html"


def plan(run: Run, shard: Shard) -> str:
    """Return the URL of the samples that a shard still to be written shall hold."""
    return f"{plans_of(run)}/{shard.name}.parquet"


def plans_of(run: Run) -> str:
    """Return the URL of the folder of one run's plans."""
    return f"{plans(run.out)}/{run.run_id}"


def plans(out: str) -> str:
    """Return the URL of the folder of plans; empty but while a run is under way or was killed."""
    return f"{out}/_plans"


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
    return f"{out}/_training/{path_name(name)}.safetensors"


def views(out: str, *, model_id: str) -> str:
    """Return the URL of the folder of embeddings of augmented views, of images to train on."""
    return f"{out}/_training/views/model={path_name(model_id)}"


def run_manifest(out: str, run_id: str) -> str:
    """Return the URL of the list of every object that a run left standing."""
    return f"{out}/_manifests/{run_id}.json"


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
    return f"{out}/_listings/{digest(source)[:16]}"


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
