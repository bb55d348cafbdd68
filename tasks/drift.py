"""A night in, how it differs from earlier ones and what became of its canaries out, as tasks."""

from __future__ import annotations

from clipcap import canaryfiles
from clipcap.layout import Run
from clipcap.outcomes import Night
from clipcap.stability import Drift, DriftSettings
from clipcap.stages import canaries
from clipcap.stages import drift as stage
from clipcap.stages.canaries import Judges
from tasks._task import task


@task(run_name="check {file}")
def check_canaries(file: str, label_sets: tuple[str, ...]) -> None:
    """See that the file of canaries can be read, and that its labels are known."""
    canaryfiles.read(file, label_sets)


@task(run_name="canaries {settings.canaries}", needs_gpu=True)
def look_at_canaries(run: Run, settings: DriftSettings, judges: Judges) -> Drift:
    """Embed and label the images that must keep their labels."""
    wanted = canaryfiles.read(settings.canaries, judges.label.label_sets)
    return canaries.look(wanted, judges, run=run, settings=settings)


@task(run_name="drift {night.run.run_id}")
def compare_night(night: Night, settings: DriftSettings) -> Drift:
    """Compare what is about to be published with the dates before it."""
    return stage.compare(night, settings=settings)
