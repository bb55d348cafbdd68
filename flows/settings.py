"""Everything a person may choose about a night, as Prefect's form and `--settings FILE` show it."""

from __future__ import annotations

from pydantic import Field

from clipcap import promotions, storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.settings import Settings
from clipcap.stability import DriftSettings
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.label import LabelSettings
from clipcap.stages.publish import PublishSettings
from clipcap.stages.shard import ShardSettings

SHARDS_PER_PARTITION = 8
"""With 2,000 images a shard: minutes on a CPU, and 10 million images stay under 2,000 task runs."""
MAX_REJECT_RATE = 0.05


def settled(settings: CaptionSettings, out: str) -> CaptionSettings:
    """Return the settings with the captioner that `promoted` stands for now.

    Raises:
        SettingsError: nothing was promoted, or it was changed since.
        StorageError: it cannot be read.
    """
    name = promotions.resolved(storage.canonical(out), settings.captioner)
    return settings.model_copy(update={"captioner": name})


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
    """Shards that one task run takes; changes no result."""
    max_reject_rate: float = Field(default=MAX_REJECT_RATE, ge=0, le=1)
    """The night stops before any model work if a larger share of the new images is rejected."""
