"""An embedded output whose images have captions by people in, a captioner folder out."""

from __future__ import annotations

from clipcap import captionfiles
from clipcap.embedding import EmbedSettings
from clipcap.errors import NotFoundError
from clipcap.stages.train import Trained, TrainSettings
from flows._flow import flow
from flows._ledger import Ledger
from tasks.preflight import check_models, check_output, check_places
from tasks.train import train_captioner


@flow(name="train", run_name="train {settings.name}")
def train(
    out: str,
    settings: TrainSettings = TrainSettings(),
    encoder: EmbedSettings = EmbedSettings(),
) -> Trained:
    """Train a captioner on the captions that people wrote for the images of an output.

    Args:
        out: URL of the output; the captioner is written into it.
        settings: Which captioner, and how it is trained.
        encoder: Whose embeddings it learns to read.
    """
    given = {"settings": settings, "encoder": encoder}
    with Ledger("train", out, given, logical_date=None) as ledger:
        if settings.embeddings == "file":  # nothing of the encoder need be here, nor images
            ledger.call(check_places, settings.captions or out, out)
        else:
            ledger.call(check_models, encoder, None, (), (settings.device,))
            _check_output(ledger, out, settings)
        ledger.confirm(alone=False)  # beside nights: it takes longer than they do
        with ledger.stage("train"):
            trained = ledger.call(train_captioner, ledger.run, settings, encoder)
        ledger.finish(report_url=trained.report_url)
        return trained


def _check_output(ledger: Ledger, out: str, settings: TrainSettings) -> None:
    try:
        ledger.call(check_output, out)
    except NotFoundError as error:
        hint = captionfiles.own_embeddings(settings.captions)
        raise NotFoundError(f"{error}{hint}") from error
