"""What a run was asked for in, an error out before any work if it cannot be done, as tasks."""

from __future__ import annotations

from clipcap import cards, contracts, delta, embedding, registry, storage, wordlists
from clipcap.cards import Choice
from clipcap.embedding import EmbedSettings
from clipcap.encoding import choose_device
from clipcap.errors import SettingsError
from clipcap.labels import bank, sets
from clipcap.stages.caption import CaptionSettings, choose
from clipcap.verify import ours
from tasks._task import task


@task(run_name="check {source} and {out}")
def check_places(source: str, out: str) -> None:
    """Look whether the source is there, and the output is ours and of this contract.

    Whether one may write to it, its lease tells.
    """
    if not source or not out:
        raise SettingsError("There must be a source and an output, but one of them is empty.")
    storage.canonical(source)  # refuses credentials, before anything of the run is written down
    ours.require_apart(source, out)
    if not any(sign in source for sign in "*?["):  # else a pattern, which only listing can judge
        storage.require_bucket(source)
    _require_output(out)


@task(run_name="check {out}")
def check_output(out: str) -> None:
    """Look whether the output is there, ours and of this contract."""
    if not out:
        raise SettingsError("There must be an output, but its address is empty.")
    storage.require_bucket(out)
    _require_output(out)


def _require_output(out: str) -> None:
    ours.require_ours(out)
    contracts.require_current(storage.canonical(out))
    ours.require_kept(out)


@task(run_name="check {out} for Delta")
def check_delta(out: str) -> None:
    """Look whether the store of the output keeps commits apart, and the library is here."""
    delta.require(out)


@task(run_name="check {encoder.model}")
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
        if captioner.decode is not None:  # the card's own needs no look, and looking needs torch
            _require_decoder(captioner.decode)
    for device in devices:
        if device.startswith("cuda"):  # `auto` takes what there is, and needs no torch to say so
            choose_device(device)


def _require_decoder(decode: Choice) -> None:
    """See that there is the decoder, with these settings, and the list of words that they name."""
    cards.choose(registry.load("clipcap.decoders", decode.name), "decoder", decode)
    wordlists.digests(decode.settings)
