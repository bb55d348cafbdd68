"""What a run was asked for in, an error out before any work if it cannot be done, as tasks."""

from __future__ import annotations

from clipcap import embedding, storage
from clipcap.embedding import EmbedSettings
from clipcap.encoding import choose_device
from clipcap.errors import SettingsError
from clipcap.labels import bank, sets
from clipcap.stages.caption import CaptionSettings, choose
from tasks._task import task


@task(run_name="check {source} and {out}", tags=("cpu",))
def check_places(source: str, out: str) -> None:
    """Look whether the source is there and the output takes a probe."""
    if not source or not out:
        raise SettingsError("There must be a source and an output, but one of them is empty.")
    storage.canonical(source)  # refuses credentials, before anything of the run is written down
    if not any(sign in source for sign in "*?["):  # else a pattern, which only listing can judge
        storage.require_bucket(source)
    storage.require_writable(out)


@task(run_name="check {encoder.model}", tags=("cpu",))
def check_models(
    encoder: EmbedSettings,
    captioner: CaptionSettings | None,
    label_sets: tuple[str, ...],
    devices: tuple[str, ...],
) -> None:
    """Find the models and label sets, see that they fit, and that devices asked for are there."""
    sets.require_own_names([bank.load(name).label_set for name in label_sets])
    embedding.recipe(encoder, embedding.reference(encoder))
    if captioner is not None:
        choose(captioner, encoder)
    for device in devices:
        if device.startswith("cuda"):  # `auto` takes what there is, and needs no torch to say so
            choose_device(device)
