"""The captions of one captioner in; below which scores they are doubted out, beside its card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from clipcap import commits, embedding, judgements, layout, manifest, review, tables, thresholds
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.judgements import Judgements
from clipcap.layout import Shard
from clipcap.metrics import clipscore
from clipcap.review import ReviewCard, ReviewReason, ReviewSettings
from clipcap.settings import Settings
from clipcap.stages import caption
from clipcap.stages.caption import CaptionSettings, Chosen
from clipcap.thresholds import Measure, Measured, ThresholdSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEASURES: Final[tuple[Measure, ...]] = ("clip_score", "logprob", "margin")
_SHARDS: Final = 64  # looked at without labels, evenly from all: bounds what is read
_BLOCK: Final = 1_024  # texts encoded at a time


class CalibrateSettings(Settings):
    """What is measured, on what, and what is doubted besides."""

    labels: str = ""
    """File in which people called captions good or bad; empty: measured without labels."""
    measures: tuple[Measure, ...] = MEASURES
    """What thresholds are measured of; a caption below any of them is doubted."""
    quantiles: tuple[Measure, ...] = ("logprob",)
    """Without labels: what is doubted by its lowest share; else CLIPScore by other images."""
    sample: int = Field(default=5_000, gt=0)
    """Without labels: most captions that are looked at."""
    others: int = Field(default=8, gt=0)
    """Without labels: other images whose captions each image is compared with."""
    min_words: int = Field(default=3, ge=0)
    """Fewer words are `near_empty`; chosen, not measured."""
    suppress: tuple[ReviewReason, ...] = ()
    """Reasons for which a caption is not shown at all."""
    thresholds: ThresholdSettings = ThresholdSettings()
    """How a threshold is chosen, and what the sample must show."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was measured, and what it says of the captions that it was measured on."""

    card: ReviewCard
    captions: int
    """Captions looked at."""
    reasons: Mapping[ReviewReason, int]
    """Captions looked at that have a reason, by these rules alone."""
    doubted: int
    """Captions looked at with any reason."""
    suppressed: int
    """Captions looked at that are not shown."""
    bad: int | None = None
    """Captions looked at that people called bad; None without labels."""
    doubted_bad: int | None = None
    """Those of them with any reason."""
    not_measured: Mapping[Measure, str] = field(default_factory=dict)
    """Why there is no threshold of a measure."""
    unused_labels: int = 0
    """Labels of other images, other captioners, or captions that were written anew since."""


def calibrate(
    out: str,
    *,
    settings: CalibrateSettings,
    captioner: CaptionSettings,
    encoder: EmbedSettings,
    speed: Speed,
) -> Calibrated:
    """Measure thresholds on the captions of an output; nothing is written.

    Args:
        out: the canonical URL of the output.
        settings: what is measured, and on what.
        captioner: whose captions, as `caption` was told: decoder and choice too.
        encoder: the encoder of the embeddings.
        speed: the device of the encoder's text side, which judges captions of other images.

    Raises:
        SettingsError: no captions, those of another captioner, or a sample that shows nothing.
        NotFoundError: a shard is not embedded, or there is no file of labels.
    """
    plain = captioner.model_copy(update={"review": ReviewSettings(measured=False)})
    chosen = caption.choose(plain, encoder)
    why: dict[Measure, str] = {}
    labels, unused = None, 0
    if settings.labels:
        labels = judgements.read(settings.labels, out, captioner_id=chosen.card.captioner_id)
        found = labels.of(_captions(out, chosen, encoder, wanted=list(labels.by_image)))
        measured, why = _by_labels(found, labels, chosen, settings)
        unused = len(labels.by_image) - found.num_rows + labels.unmatched + labels.of_others
    else:
        found = _captions(out, chosen, encoder, most=settings.sample)
        measured = _without(found, chosen, settings, _Texts(out, encoder, speed))
    card = _card(chosen, measured, settings, labels)
    done = _told(card, found.drop_columns(["shard"]), chosen, labels)
    return replace(done, not_measured=why, unused_labels=unused)


def _captions(
    out: str,
    chosen: Chosen,
    encoder: EmbedSettings,
    *,
    wanted: Sequence[str] | None = None,
    most: int | None = None,
) -> pa.Table:
    """Return captions with their shard, sorted by `image_id`: those of some images, or a sample.

    An `image_id` is a digest, so the first ones are a sample as good as any.
    """
    live = manifest.shards(out)
    if most is not None and len(live) > _SHARDS:
        live = [live[at * len(live) // _SHARDS] for at in range(_SHARDS)]
    found: list[pa.Table] = []
    for shard in live:
        part = _of_shard(out, shard, chosen, encoder)
        if part is None:
            continue
        if wanted is not None:
            part = part.filter(pc.is_in(part["image_id"], pa.array(wanted, pa.string())))
        part = part.filter(pc.and_(_said(part), pc.not_equal(part["status"], "failed")))
        names = pa.array([str(shard)] * part.num_rows, pa.string())
        part = part.replace_schema_metadata().append_column("shard", names)
        found = [pa.concat_tables([*found, part]).sort_by("image_id").slice(0, most)]
    if not found or (wanted is None and not found[0].num_rows):
        raise SettingsError(
            f"There must be captions by {chosen.card.captioner_id} in {out}, but there are none. "
            f"`clipcap caption {out} --captioner {chosen.settings.captioner}` writes some."
        )
    return found[0]


def _said(part: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(part["caption_raw"]), ""), False)  # noqa: FBT003


def _of_shard(out: str, shard: Shard, chosen: Chosen, encoder: EmbedSettings) -> pa.Table | None:
    """Return the captions of a shard, None where it has none yet."""
    url = layout.captions(out, shard, captioner_id=chosen.card.captioner_id)
    found = commits.find(url)
    if found is None:
        return None
    source = embedding.committed(shard, embedding.reference(encoder), out=out)
    if found.recipe != caption.recipe(chosen, source):
        raise SettingsError(
            f"The captions {url} must be by the captioner {chosen.card.captioner_id} "
            f"({chosen.sha256[:12]}), decoded and chosen as these settings say, but were made by "
            f"another ({found.metadata.get('captioner_sha256', '')[:12]}, "
            f"{found.metadata.get('decode', '')}) or with others. `clipcap caption {out}` with the "
            "same settings makes them anew."
        )
    return tables.read(url)


def _scores(
    found: pa.Table, name: Measure, chosen: Chosen
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the scores of captions, and which are looked at: not all have a margin."""
    given = [review.value(row, name, chosen.settings.rank_by) for row in found.to_pylist()]
    score_N = np.array([np.nan if one is None else one for one in given], np.float64)
    return score_N, ~np.isnan(score_N) | (name != "margin")


def _by_labels(
    found: pa.Table, labels: Judgements, chosen: Chosen, settings: CalibrateSettings
) -> tuple[list[Measured], dict[Measure, str]]:
    """Return a threshold of each measure that says something, and why the others do not."""
    bad_N = np.array([labels.by_image[name].bad for name in found["image_id"].to_pylist()], bool)
    made: list[Measured] = []
    why = {}
    for name in settings.measures:
        score_N, there_N = _scores(found, name, chosen)
        try:
            made.append(
                thresholds.of_labels(name, score_N[there_N], bad_N[there_N], settings.thresholds)
            )
        except SettingsError as error:
            why[name] = str(error)
    if not made:
        told = "\n  ".join(f"{name}: {reason}" for name, reason in why.items())
        raise SettingsError(f"No threshold can be measured by {settings.labels}:\n  {told}")
    return made, why


@dataclass(frozen=True, slots=True)
class _Texts:
    """What it takes to score captions against other images."""

    out: str
    encoder: EmbedSettings
    speed: Speed


def _without(
    found: pa.Table, chosen: Chosen, settings: CalibrateSettings, texts: _Texts
) -> list[Measured]:
    made = []
    for name in settings.measures:
        score_N, there_N = _scores(found, name, chosen)
        if name in settings.quantiles:
            made.append(thresholds.quantile(name, score_N[there_N], settings.thresholds))
        elif name == "clip_score":
            other_NS = _other_scores(found, settings, texts)
            made.append(thresholds.of_other_images(score_N, other_NS, settings.thresholds))
    if not made:
        raise SettingsError("Without labels a logprob or margin is measured as a --quantile only.")
    return made


def _other_scores(
    found: pa.Table, settings: CalibrateSettings, texts: _Texts
) -> NDArray[np.float64]:
    """Return CLIPScore of images and captions of others, `other_NS`; NaN where they are alike."""
    raw = found["caption_raw"].to_pylist()
    encode = embedding.load(texts.encoder, texts.speed).encode_texts
    blocks = [encode(raw[at : at + _BLOCK]).numpy() for at in range(0, len(raw), _BLOCK)]
    said = [text.strip().rstrip(".").lower() for text in raw]
    return clipscore.of_other_images(
        _embeddings(found, texts),
        np.concatenate(blocks),
        (said, found["content_sha256"].to_pylist()),
        count=settings.others,
        seed=settings.thresholds.seed,
    )


def _embeddings(found: pa.Table, texts: _Texts) -> NDArray[np.float32]:
    """Return the embeddings of captioned images in their order, `image_ND`."""
    parts, model_id = [], embedding.reference(texts.encoder).model_id
    for name in pc.unique(found["shard"]).to_pylist():
        url = layout.embeddings(texts.out, Shard(*name.split("/", 1)), model_id=model_id)
        part = tables.read(url, ["image_id", "embedding"])
        parts.append(part.filter(pc.is_in(part["image_id"], found["image_id"].combine_chunks())))
    whole = pa.concat_tables(parts)
    at = pc.index_in(found["image_id"], value_set=whole["image_id"].combine_chunks())
    return tables.vectors(whole.take(at))


def _card(
    chosen: Chosen,
    measured: Sequence[Measured],
    settings: CalibrateSettings,
    labels: Judgements | None,
) -> ReviewCard:
    return ReviewCard(
        captioner_id=chosen.card.captioner_id,
        captioner_sha256=chosen.sha256,
        decode=chosen.decode,
        rank_by=chosen.settings.rank_by,
        model_id=chosen.card.encoder.model_id,
        measured_on=datetime.now(UTC).date().isoformat(),
        producer=commits.PRODUCER,
        labels_sha256=labels.sha256 if labels else None,
        thresholds=tuple(measured),
        min_words=settings.min_words,
        suppress=settings.suppress,
    )


def _told(
    card: ReviewCard, found: pa.Table, chosen: Chosen, labels: Judgements | None
) -> Calibrated:
    by = review.rules(ReviewSettings(), card)
    rows = review.judged(found, by, chosen.settings.rank_by).to_pylist()
    counted = Counter(reason for row in rows for reason in row["review_reasons"])
    doubted = [row for row in rows if row["review_reasons"]]

    def bad(among: Sequence[Mapping[str, str]]) -> int | None:
        if labels is None:
            return None
        return sum(labels.by_image[row["image_id"]].bad for row in among)

    return Calibrated(
        card=card,
        captions=len(rows),
        reasons={reason: counted[reason] for reason in review.REASONS if counted[reason]},
        doubted=len(doubted),
        suppressed=sum(row["status"] == "suppressed" for row in rows),
        bad=bad(rows),
        doubted_bad=bad(doubted),
    )
