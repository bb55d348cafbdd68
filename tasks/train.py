"""An embedded output with reference captions in, a captioner folder out, as a task."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings
from clipcap.layout import Run
from clipcap.stages import train as stage
from clipcap.stages.train import Trained, TrainSettings
from tasks._task import task


@task(run_name="train {settings.name}", needs_gpu=True)
def train_captioner(run: Run, settings: TrainSettings, encoder: EmbedSettings) -> Trained:
    """Train on every image that is embedded and has captions written by people."""
    return stage.train(run, settings=settings, encoder=encoder)
