"""A candidate and the promoted captioner of an output in; promoted if it is not worse, out."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import pyarrow as pa
from pydantic import Field

from clipcap import layout, promotions, tables
from clipcap.embedding import EmbedSettings
from clipcap.errors import ClipcapError, NotFoundError, SettingsError
from clipcap.metrics import paired, scorefile
from clipcap.metrics.paired import Difference, PairedSettings
from clipcap.promotions import Compared, Promotion
from clipcap.settings import Settings
from clipcap.stages import evaluate, judge
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.judge import Judging, Side

Measure = Literal[
    "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "clip_score", "ref_clip_score",
    "meteor", "spice",
]  # fmt: skip
_OF_ENCODER: Final = ("clip_score", "ref_clip_score")


class PromoteSettings(Settings):
    """What a captioner must show before it is promoted."""

    references: str = ""
    """File of captions by people, joined by key, address or file name; empty: those that images
    came with. Take images that neither captioner was trained on."""
    measure: Measure = "cider_d"
    """By which it must be not worse than the one that is promoted."""
    margin: float = Field(default=0.05, ge=0)
    """Not worse: the interval of the difference begins no lower than this share of the promoted
    one's figure below 0. At 0 it must be better, or the same."""
    scores: str = ""
    """Score file of the candidate (`clipcap evaluate --scores`); used if it is of the very
    captions and references."""
    reason: str = ""
    """Promote it without judging it; what the history says of why."""
    paired: PairedSettings = PairedSettings()
    """How surely the two are told apart."""
    caption: CaptionSettings = CaptionSettings()
    """How both find captions, as the nights will; its `captioner` is not looked at."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a candidate."""

    promoted: bool
    """Whether it is the promoted captioner now."""
    why: str
    """In a sentence."""
    promotion: Promotion
    """What was written down, or would have been."""
    differences: tuple[Difference, ...] = ()
    """From the promoted one to the candidate."""


def promote(
    out: str, name: str, *, settings: PromoteSettings, encoder: EmbedSettings, speed: CaptionSpeed
) -> Judged:
    """Promote a captioner of an output if it is not worse than the promoted one.

    Both are judged on the embedded images that people wrote captions for. Captions that the output
    has by them count as they are; the others are found now, and not kept.

    Args:
        out: the canonical URL of the output.
        name: the candidate: trained in this output, `bundled`, a folder, or the URL of a folder.
        settings: what it must show.
        encoder: whose embeddings the candidate reads.
        speed: how fast.

    Raises:
        SettingsError: no such captioner, or one that does not fit; nothing to judge it by.
        NotFoundError: the file of references is not there.
        ClipcapError: another captioner was promoted meanwhile.
    """
    old = promotions.current(out)
    place = promotions.place(out, name)
    side = judge.side(promotions.folder(out, place), encoder, settings.caption)
    new = _unjudged(old, place, side, settings)
    if old is not None and (old.captioner, old.captioner_sha256) == (place, new.captioner_sha256):
        return Judged(promoted=True, why="It is the promoted captioner already.", promotion=old)
    if settings.reason:
        _add(out, new)
        return Judged(promoted=True, why="It was not judged.", promotion=new)
    before = None if old is None else _before(out, old, side, settings)
    sides = [side] if before is None else [side, before]
    wanted = judge.wanted(out, sides, evaluate.references(out, settings.references))
    judging = Judging(out, wanted, settings.measure, speed)
    now = judge.scores(side, judging, settings.scores, logging.WARNING)
    new = _with_figures(new, now, settings)
    differences: list[Difference] = []
    refusal, why = "", "Nobody was promoted before it."
    if old is not None and before is not None:
        then = judge.scores(before, judging, layout.promotion_scores(out, old.number))
        differences = paired.compare(then, now, settings.paired)
        refusal, why = _verdict(differences, old, settings)
        new = new.model_copy(update={"compared": tuple(map(_compared, differences))})
    if not refusal:
        _add(out, new)
        scorefile.write(layout.promotion_scores(out, new.number), now, tables.metadata(now))
    return Judged(not refusal, refusal or why, new, tuple(differences))


def _before(out: str, old: Promotion, side: Side, settings: PromoteSettings) -> Side:
    """Return the captioner that is promoted still, sure that it can be compared."""
    model, other = side.encoder.model, old.encoder.model
    if settings.measure in _OF_ENCODER and model != other:
        raise SettingsError(
            f"{settings.measure} is of one encoder, but {old.captioner_id} was promoted with "
            f"{other}, not with {model}. Choose another measure (--measure)."
        )
    if old.captioner_sha256 == side.chosen.sha256:
        return side  # the same one in another folder; the one it was in may be gone
    try:
        return judge.side(promotions.require_same(out, old), old.encoder, settings.caption)
    except (SettingsError, NotFoundError) as error:
        raise SettingsError(
            f"The promoted captioner {old.captioner_id} cannot be judged: {error} To promote "
            "another one without judging it: --force REASON."
        ) from error


def _unjudged(
    old: Promotion | None, place: str, side: Side, settings: PromoteSettings
) -> Promotion:
    return Promotion(
        number=1 if old is None else old.number + 1,
        captioner=place,
        captioner_id=side.chosen.card.captioner_id,
        captioner_sha256=side.chosen.sha256,
        encoder=side.encoder,
        at=datetime.now(UTC),
        before=None if old is None else old.captioner_id,
        before_sha256=None if old is None else old.captioner_sha256,
        measure=None if old is None or settings.reason else settings.measure,
        reason=settings.reason,
    )


def _add(out: str, promotion: Promotion) -> None:
    if not promotions.add(out, promotion):
        raise ClipcapError(
            f"Another captioner was promoted in {out} meanwhile, so {promotion.captioner_id} was "
            "not. Promote it again, to be judged beside that one."
        )


def _with_figures(new: Promotion, scored: pa.Table, settings: PromoteSettings) -> Promotion:
    """Return the promotion with the figures of the score file that it is judged by.

    Raises:
        SettingsError: the measure cannot be computed; says why.
    """
    footer = tables.metadata(scored)
    figures = evaluate.figures(footer)
    measured = next(figure for figure in figures if figure.metric == settings.measure)
    if measured.value is None:
        raise SettingsError(
            f"A captioner is judged by {settings.measure}, but that cannot be computed: "
            f"{measured.reason}."
        )
    values = {figure.metric: figure.value for figure in figures if figure.value is not None}
    told = {"figures": values, "images": scored.num_rows, "signature": footer["signature"]}
    return new.model_copy(update=told)


def _compared(one: Difference) -> Compared:
    return Compared(metric=one.metric, before=one.a, now=one.b, low=one.low, high=one.high)


def _verdict(
    differences: Iterable[Difference], old: Promotion, settings: PromoteSettings
) -> tuple[str, str]:
    """Return why it is not promoted, empty if it is; and what is said if it is."""
    name = settings.measure
    one = next((found for found in differences if found.metric == name), None)
    if one is None:
        return f"{name} of {old.captioner_id} cannot be computed, so nothing can be compared.", ""
    interval = (
        f"{name} {one.b:.4f} beside {one.a:.4f} of {old.captioner_id}: the "
        f"{settings.paired.confidence:.0%} interval of the difference is {one.low:+.4f} to "
        f"{one.high:+.4f} on {one.images:,} images"
    )
    short = paired.shortfall(one, settings.margin)
    if not short:
        return "", f"It is {'better' if one.low > 0 else 'not worse'}. {interval}."
    least = -settings.margin * abs(one.a)
    more = "" if short == "worse" else " More images with captions by people make it narrower."
    return (
        f"It is {short}. {interval}, and may begin at {least:+.4f} (margin "
        f"{settings.margin:g}).{more}",
        "",
    )
