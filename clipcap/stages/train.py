"""Embeddings and the captions people wrote for the same images in, a captioner folder out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from clipcap import alignment, cards, imageviews, layout, materials, models, promotions, storage
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.embedding import EmbedSettings, Speed
from clipcap.layout import Run
from clipcap.materials import Materials
from clipcap.pairs import Embeddings
from clipcap.settings import Settings, digest
from clipcap.training import TrainSettings as LoopSettings

if TYPE_CHECKING:
    from clipcap.captioner import Captioner
    from clipcap.parallel import Team
    from clipcap.trainer import TrainMetrics

log = logging.getLogger(__name__)

VERSION: Final = 2
"""Raised by hand when training the same data gives another captioner."""
_NO_RESULT: Final = {
    *("device", "checkpoint_steps", "alignment_images"),
    *("captions", "texts"),  # known by what is read
}
_NEW: Final = {"embeddings", "normalized", "views"}  # what nobody asked for is as it always was


class TrainSettings(Settings):
    """Which captioner is trained, and how."""

    name: promotions.Name = "captioner"
    """Name of the new captioner; its folder is `captioners/NAME` in the output."""
    start: str = models.BUNDLED
    """Captioner whose language model training starts from, or the folder of a transformers one."""
    captions: str = ""
    """File of captions, joined by key, address or file name; empty: those that images came with;
    none: no captions of images are learned, only texts."""
    embeddings: Embeddings = "stored"
    """`stored` in the output, or those in the `file` of captions, a pickle of the original."""
    normalized: bool = True
    """Whether the mapper reads embeddings of length 1; the original's reads them as they come."""
    texts: str = ""
    """File of texts without images, a line each, or any file of captions: learned first, as if
    each were an image that it describes."""
    mapper: Choice = Choice(name="mlp")
    """File of `clipcap/mappers` and its settings."""
    prefix_length: int = Field(default=10, gt=0)
    """Vectors P that the mapper puts before the language model's input."""
    device: str = "auto"
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`."""
    views: int = Field(default=0, ge=0)
    """Augmented views of each image that are embedded before; each step draws one, or the image."""
    loop: LoopSettings = LoopSettings()
    """Loss, steps and rates."""
    checkpoint_steps: int = Field(default=500, gt=0)
    """Steps after which a killed training goes on, besides measurements; changes no result."""
    alignment_images: int = Field(default=8, ge=0)
    """Images that are embedded anew before, to see whether the stored embeddings are theirs."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A captioner that was trained, or found trained already from the same data and settings."""

    folder: str
    captioner_id: str
    images: int
    captions: int
    loss: float | None
    validation_loss: float | None
    was_there: bool
    seconds: float
    captions_unmatched: int = 0
    """Captions of the file whose image the output does not have."""
    captions_blank: int = 0
    """Captions of the file that say nothing."""
    texts: int = 0
    """Texts without an image."""
    report_url: str = ""
    """The page of how it learned; empty where nothing was trained."""


def train(run: Run, *, settings: TrainSettings, encoder: EmbedSettings) -> Trained:
    """Train on every live image that is embedded and has reference captions, joined by `image_id`.

    Texts without images are learned before those captions, or in their place where there are none.

    Raises:
        SettingsError: no image has both an embedding and a caption; parts that do not fit.
        NotFoundError: a shard is not embedded.
    """
    began = time.time()
    is_moved = settings.loop.texts.shift == "mean"
    files = (settings.captions, settings.embeddings, settings.texts)
    data = materials.gather(run.out, encoder, materials.Given(*files, is_moved=is_moved))
    data.require(views=settings.views, normalized=settings.normalized)
    fingerprint = _fingerprint(data, settings)
    this = _Training(run, settings, fingerprint, began)
    old = _existing(this.folder)
    was_there = old is not None and old.training.get("fingerprint") == fingerprint
    done = Trained(
        folder=this.folder,
        captioner_id=settings.name,
        images=data.found.num_rows,
        captions=sum(len(texts) for texts in data.found["reference_captions"].to_pylist()),
        loss=None,
        validation_loss=_validation_loss(old) if was_there else None,
        was_there=was_there,
        seconds=0.0,
        captions_unmatched=data.unmatched,
        captions_blank=data.blank,
        texts=len(data.texts),
    )
    if was_there:
        storage.delete(this.state_url)
    else:
        promotions.require_free(run.out, settings.name)
        metrics = _trained(this, data)
        last = metrics.curve[-1].loss if metrics.curve else None
        loss, url = metrics.validation_loss, layout.report(run)
        done = replace(done, loss=last, validation_loss=loss, report_url=url)
    done = replace(done, seconds=time.time() - began)
    log.info(
        "train %s: %d images, %d captions, %d texts, loss %s, %.1f s",
        settings.name, done.images, done.captions, done.texts, done.loss, done.seconds,
    )  # fmt: skip
    return done


@dataclass(frozen=True, slots=True)
class _Training:
    """One training that has to be done."""

    run: Run
    settings: TrainSettings
    fingerprint: str
    began: float

    @property
    def folder(self) -> str:
        """Where the captioner goes."""
        return layout.captioner(self.run.out, self.settings.name)

    @property
    def state_url(self) -> str:
        """Where the state lies until then."""
        return layout.training(self.run.out, self.settings.name)


def _validation_loss(card: Card | None) -> float | None:
    loss = card.training.get("validation_loss") if card is not None else None
    return loss if isinstance(loss, float) else None


def _fingerprint(data: Materials, settings: TrainSettings) -> str:
    chosen = settings.model_dump(mode="json", exclude=_NO_RESULT | _NEW)
    chosen |= settings.model_dump(mode="json", include=_NEW, exclude_defaults=True)
    chosen |= {"loop": settings.loop.told()}
    chosen |= {"view_version": imageviews.VERSION} if settings.views else {}
    start = cards.captioner_digest(_start_folder(settings.start))
    return digest(["train", VERSION, data.recipe, chosen, start, *data.identity()])


def _start_folder(start: str) -> str:
    path = storage.local_path(start)
    if path is not None and (path / "config.json").is_file():
        return start
    return models.captioner_folder(start)


def _existing(folder: str) -> Card | None:
    if storage.info(f"{folder}/{cards.CARD_NAME}") is None:
        return None
    return cards.read_card(folder)


def _trained(this: _Training, data: Materials) -> TrainMetrics:
    """Train, in one of several processes or alone, report and save."""
    from clipcap import parallel
    from clipcap.encoding import choose_device

    with parallel.joined(choose_device(parallel.device(this.settings.device))) as team:
        team.require_same(this.fingerprint, "settings, images and captions")
        data = _looked_at(this, data, team)
        captioner = _untrained(data.fit, this.settings).to(team.device)
        metrics = _learned(this, data, captioner)
        if team.is_first:
            _report(this, captioner.card)
            promotions.require_free(this.run.out, this.settings.name)  # somebody may have meanwhile
            cards.remove(this.folder)
            captioner.write(this.folder)
            storage.delete(this.state_url)
    return metrics


def _looked_at(this: _Training, data: Materials, team: Team) -> Materials:
    """Compare embeddings with their images and add views; the first process before the others."""
    if not data.found.num_rows:
        return data
    out, encoder, speed = this.run.out, data.encoder, Speed(device=str(team.device))
    images, views = this.settings.alignment_images, this.settings.views
    with team.in_turn():
        if team.is_first:
            alignment.require(data.found, out, encoder=encoder, speed=speed, images=images)
        if not views:
            return data
        found = imageviews.added(data.found, this.run, encoder=encoder, speed=speed, views=views)
        return replace(data, found=found)


def _report(this: _Training, card: Card) -> None:
    """Write the page of how it learned; before the card, which makes the captioner count."""
    from clipcap.report import trained

    page = trained.render(this.run, card, seconds=time.time() - this.began)
    storage.write(layout.report(this.run), page.encode())


def _learned(this: _Training, data: Materials, captioner: Captioner) -> TrainMetrics:
    """Train the captioner, and write into its card what it learned."""
    from clipcap import parallel, trainer, validation
    from clipcap.lessons import Examples
    from clipcap.progress import Hooks, tell
    from clipcap.resume import Checkpoint

    settings = this.settings
    checkpoint = Checkpoint(this.state_url, this.fingerprint)
    embedding_ND, norm_N = data.embeddings(parallel.current(captioner.device))
    captions = data.captions()
    by_cider = settings.loop.measure == "cider"
    hooks = Hooks(
        on_progress=tell,
        load=checkpoint.load,
        save=checkpoint.save,
        save_steps=settings.checkpoint_steps,
        score=validation.cider(embedding_ND, norm_N, captions) if by_cider else None,
    )
    scaled = captioner.scaled(embedding_ND, norm_N)
    if imageviews.VIEWS in data.found.column_names:
        scaled = imageviews.behind(scaled, data.found, captioner)
    examples = Examples(scaled, captions, texts=len(data.texts))
    metrics = trainer.learn(examples, captioner, settings.loop, hooks=hooks)
    told = {"fingerprint": this.fingerprint, "images": data.found.num_rows}
    training = told | _told(metrics, settings)
    captioner.card = captioner.card.model_copy(update={"training": training})
    return metrics


def _told(metrics: TrainMetrics, settings: TrainSettings) -> dict[str, Any]:
    """Return what the card says of a training."""
    from clipcap import progress

    texts = {"texts": metrics.texts_trained, "text_steps": metrics.text_steps}
    return {
        "settings": settings.loop.told(),
        "captions": metrics.captions_trained,
        "captions_held_out": metrics.captions_held_out,
        "captions_cut": metrics.captions_cut,
        "captions_blank": metrics.captions_blank,
        **{name: count for name, count in texts.items() if count},
        "validation_loss": metrics.validation_loss,
        "best_step": metrics.best_step,
        **progress.told(metrics.curve),
    }


def _untrained(fit: EncoderFit, settings: TrainSettings) -> Captioner:
    """Return a captioner with a fresh mapper before the chosen language model."""
    from clipcap import captioner

    start = _start_folder(settings.start)
    inner = f"{start}/{cards.LANGUAGE_MODEL_NAME}"
    plain = (path := storage.local_path(start)) is not None and (path / "config.json").is_file()
    language_model, tokenizer = captioner.load_language_model(start if plain else inner)
    longest = settings.loop.max_tokens
    positions = getattr(language_model.config, "max_position_embeddings", None)
    room = longest if positions is None else positions - settings.prefix_length + 1
    taught = "texts and the captions" if settings.texts else "the captions"
    card = Card(
        captioner_id=settings.name,
        note=f"Trained on {taught} of one image collection, from {settings.start}.",
        encoder=fit,
        normalized=settings.normalized,
        prefix_length=settings.prefix_length,
        mapper=settings.mapper,
        decode=Choice(
            name="beam",
            settings={"stop": settings.loop.stop, "max_tokens": min(longest, room)},
        ),
    )
    return captioner.new(card, language_model, tokenizer, seed=settings.loop.seed)
