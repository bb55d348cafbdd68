"""Everything a person may choose about a night, as Prefect's form and `--settings FILE` show it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from pydantic import Field

from clipcap import promotions, storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.settings import Settings
from clipcap.stability import DriftSettings
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.label import LabelSettings
from clipcap.stages.publish import PublishSettings
from clipcap.stages.shard import ShardSettings
from flows._ray import RaySettings

LogicalDate = Annotated[date, Field(json_schema_extra={"pattern": r"^\d{4}-\d{2}-\d{2}$"})]
"""The date that new shards are filed under; Prefect's form holds no text against `format: date`."""
SHARDS_PER_PARTITION = 10
"""With 2,000 images a shard: minutes on a CPU, and 10 million images are 500 tasks of a stage."""
MAX_REJECT_RATE = 0.05


def begun(given: date) -> date:
    """Return a logical date that has begun somewhere on earth.

    Raises:
        SettingsError: it is to come.
    """
    newest = datetime.now(UTC).date() + timedelta(days=1)
    if given > newest:
        raise SettingsError(
            f"The logical date must be {newest} or before, but is {given}. Shards filed under a "
            "date to come would stay the newest of the output until then."
        )
    return given


def settled(settings: CaptionSettings, out: str) -> CaptionSettings:
    """Return the settings with the captioner that `promoted` stands for now.

    Raises:
        SettingsError: nothing was promoted, or it was changed since.
        StorageError: it cannot be read.
    """
    name = promotions.resolved(storage.canonical(out), settings.captioner)
    return settings.model_copy(update={"captioner": name})


class DispatchSettings(Settings):
    """How a night is shared among the workers of a Prefect server; changes no result."""

    deployment: str = Field(default="group/group", pattern=r"^[^/]+/[^/]+$")
    """Deployment of the flow `group` whose workers embed, caption and label."""
    shard_deployment: str = Field(default="group/group", pattern=r"^[^/]+/[^/]+$")
    """Deployment of the flow `group` whose workers write shards; `group/group-cpu` leaves the GPUs
    to the models, and needs a worker of the CPU pool beside the one that runs the night."""
    shards_per_group: int = Field(default=20, gt=0, le=1_000)
    """Shards that one process takes: 10 to 50. It starts in seconds and loads its models once."""
    in_flight: int = Field(default=32, gt=0, le=256)
    """Groups that are given out at a time; at least as many as there are workers."""
    poll_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds between two looks at a group that is under way."""
    worker_wait_s: float = Field(default=1_800.0, gt=0)
    """The night stops if for so many seconds no worker takes a group and none is at one."""


class NightlySettings(Settings):
    """What a night takes in, which models it runs, and what it leaves."""

    shard: ShardSettings = ShardSettings()
    """Which images are taken in."""
    embed: EmbedSettings = EmbedSettings()
    """Which encoder makes the embeddings."""
    caption: CaptionSettings | None = CaptionSettings()
    """Which captioner writes the captions; null writes none."""
    label: LabelSettings = LabelSettings()
    """Which labels are given."""
    drift: DriftSettings | None = DriftSettings()
    """How the night is compared with earlier ones before it is published; null: not at all."""
    publish: PublishSettings = PublishSettings()
    """What is left beside the tables."""
    speed: Speed = Speed()
    """How fast images are embedded; changes no result."""
    caption_speed: CaptionSpeed = CaptionSpeed()
    """How fast captions are written; changes no result."""
    shards_per_partition: int = Field(default=SHARDS_PER_PARTITION, gt=0)
    """Shards that one task run takes, more where there would be over 500; changes no result."""
    dispatch: DispatchSettings | None = None
    """How the night is shared among Prefect workers; null: all of it runs in this process."""
    max_reject_rate: float = Field(default=MAX_REJECT_RATE, ge=0, le=1)
    """The night stops before any model work if a larger share of the new images is rejected."""
    ray: RaySettings | None = None
    """A Ray cluster that works on the partitions; null: they are worked on here, in turn."""
