"""Tiny models in, the settings of a whole night with them out."""

from __future__ import annotations

from typing import Any

from clipcap.planning import PackSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings
from flows.settings import NightlySettings
from tests.nights import Tiny


def nightly_settings(tiny: Tiny, max_images: int = 2, **chosen: Any) -> NightlySettings:  # noqa: ANN401 - any setting
    """Return the settings of a night with so many images in a shard, and others as chosen."""
    own: dict[str, Any] = {
        "shard": ShardSettings(pack=PackSettings(max_images=max_images)),
        "embed": tiny.encoder,
        "caption": tiny.captioner,
        "label": LabelSettings(label_sets=(tiny.label_set,)),
    }
    return NightlySettings(**(own | chosen))
