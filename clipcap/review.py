"""Captions with their scores in; which to look at or not to show, and why, out.

Judged is what the table holds, so another rule costs no model: the rows are judged anew. What
`clipcap calibrate-captions` measured lies beside the captioner's card, in `review.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from clipcap import cards, models, storage
from clipcap.cards import Choice
from clipcap.errors import NotFoundError, SettingsError
from clipcap.settings import Settings, canonical_json
from clipcap.thresholds import Measure, Measured

ReviewReason = Literal[
    "empty", "did_not_stop", "repeats", "near_empty", "low_score", "low_logprob", "narrow_margin"
]
"""Why a person should look at a caption: the closed list of the output contract."""
RankBy = Literal["logprob", "clip_score"]
REASONS: Final[tuple[ReviewReason, ...]] = get_args(ReviewReason)
REPEATED_WORDS: Final = 3
FORMAT: Final = 1
_SCORES: Final[dict[RankBy, str]] = {"logprob": "logprob_mean", "clip_score": "clip_score"}
_READ: Final = [
    "status", "caption", "caption_raw", "clip_score", "logprob_mean", "finish_reason", "candidates",
    "review_reasons", "extra_json",
]  # fmt: skip
_JUDGED: Final = ("status", "caption", "review_reasons", "extra_json")


class ReviewSettings(Settings):
    """Which captions a person should look at; what is null here is as the captioner's folder says.

    Another rule judges the captions that are there anew; none is written again.
    """

    measured: bool = True
    """Use the thresholds that `clipcap calibrate-captions` left in the captioner's folder."""
    min_words: int | None = Field(default=None, ge=0)
    """Fewer words: `near_empty`."""
    repeated_words: int = Field(default=REPEATED_WORDS, ge=1)
    """So many words in a row that come twice: `repeats`."""
    min_clip_score: float | None = Field(default=None, allow_inf_nan=False)
    """A lower CLIPScore: `low_score`."""
    min_logprob: float | None = Field(default=None, allow_inf_nan=False)
    """A lower mean log-probability, in nats: `low_logprob`."""
    min_margin: float | None = Field(default=None, allow_inf_nan=False)
    """Less before the next other candidate, of what `rank_by` names: `narrow_margin`."""
    suppress: tuple[ReviewReason, ...] = ()
    """Reasons for which a caption is not shown at all; `empty` always is one."""


class Rules(Settings):
    """What captions are judged by: settings and what was measured, put together."""

    min_words: int = 0
    repeated_words: int = REPEATED_WORDS
    min_clip_score: float | None = None
    min_logprob: float | None = None
    min_margin: float | None = None
    suppress: tuple[ReviewReason, ...] = ()

    @property
    def text(self) -> str:
        """What a fingerprint and a footer say of them; empty where nobody has asked for any."""
        asked = self.model_dump(mode="json", exclude_defaults=True)
        return canonical_json(asked) if asked else ""


class ReviewCard(Settings):
    """Thresholds that were measured for one captioner, and on what."""

    captioner_id: str
    """The captioner whose captions were measured."""
    captioner_sha256: str
    """Digest of its folder: after a training the thresholds are another captioner's."""
    decode: Choice
    """How its captions were found."""
    rank_by: RankBy
    """What chose among the candidates; the margin is in its unit."""
    model_id: str
    """The encoder whose CLIPScore it is."""
    measured_on: str
    """UTC date."""
    producer: str
    """The program and its version."""
    labels_sha256: str | None = None
    """Digest of the file of labels; null: measured without."""
    thresholds: tuple[Measured, ...]
    """What was measured; at most one for each measure."""
    min_words: int = Field(default=0, ge=0)
    """Fewer words: `near_empty`. Chosen, not measured."""
    suppress: tuple[ReviewReason, ...] = ()
    """Reasons for which a caption is not shown. Chosen, not measured."""
    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    """Version of this file."""


def read_card(folder: str) -> ReviewCard | None:
    """Return what was measured for the captioner of a folder; None: nothing was.

    Raises:
        SettingsError: the file is there, but says something else.
    """
    url = f"{storage.canonical(folder)}/{cards.REVIEW_NAME}"
    try:
        return ReviewCard.model_validate_json(storage.read(url))
    except NotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SettingsError(
            f"The thresholds in {url} cannot be read: {place}: {first['msg']}. "
            "`clipcap calibrate-captions` writes them anew; without the file there are none."
        ) from error


def write_card(captioner: str, card: ReviewCard) -> str | None:
    """Write it into the folder of a captioner, in one step; return where.

    None: the bundled captioner is part of the program, and nothing is written into that.

    Raises:
        StorageError: it cannot be written there.
    """
    if captioner == models.BUNDLED:
        return None
    folder = captioner if "://" in captioner else models.captioner_folder(captioner)
    url = f"{storage.canonical(folder)}/{cards.REVIEW_NAME}"
    storage.write(url, (card.model_dump_json(indent=2) + "\n").encode())
    return url


def require_same(card: ReviewCard, *, sha256: str, decode: Choice, rank_by: RankBy) -> None:
    """Refuse thresholds that were measured on captions of another kind.

    Raises:
        SettingsError: another captioner, another way to find captions, or to choose among them.
    """
    pairs = {
        "captioner": (card.captioner_sha256[:12], sha256[:12]),
        "decode": (_said(card.decode), _said(decode)),
        "rank_by": (card.rank_by, rank_by),
    }
    differ = [f"{name} {had}, not {has}" for name, (had, has) in pairs.items() if had != has]
    if differ:
        raise SettingsError(
            f"The thresholds of the captioner {card.captioner_id} ({cards.REVIEW_NAME} in its "
            f"folder) were measured on {card.measured_on} on other captions: with "
            f"{'; '.join(differ)}. Caption without them (`caption.review.measured` = false in a "
            "settings file) and measure again with `clipcap calibrate-captions`, or remove the "
            "file."
        )


def _said(decode: Choice) -> str:
    return canonical_json(decode.model_dump(mode="json"))


def rules(settings: ReviewSettings, card: ReviewCard | None) -> Rules:
    """Return what holds: settings before what was measured; both suppress."""
    held: dict[str, Any] = {}
    if card is not None:
        held = {f"min_{one.measure}": one.threshold.value for one in card.thresholds}
        held["min_words"] = card.min_words
    asked = settings.model_dump(exclude={"measured", "suppress"}, exclude_none=True)
    named = {*settings.suppress, *(card.suppress if card else ())} - {"empty"}
    suppress = tuple(reason for reason in REASONS if reason in named)
    return Rules.model_validate(held | asked | {"suppress": suppress})


def judged(table: pa.Table, by: Rules, rank_by: RankBy) -> pa.Table:
    """Return captions with `status`, `caption`, `review_reasons` and margin by some rules.

    What failed stays as it is. The margin stands in `extra_json`, as `margin`.
    """
    made = [_judged(row, by, rank_by) for row in table.select(_READ).to_pylist()]
    for name in _JUDGED:
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array([row[name] for row in made], field.type))
    return table


def _judged(row: Mapping[str, Any], by: Rules, rank_by: RankBy) -> Mapping[str, Any]:
    if row["status"] == "failed":
        return row
    found = reasons(row, by, rank_by)
    hidden = {"empty", *by.suppress}.intersection(found)
    return {
        "status": "suppressed" if hidden else "ok",
        "caption": None if hidden else row["caption_raw"].strip(),
        "review_reasons": found,
        "extra_json": _with_margin(row["extra_json"], margin(row["candidates"], rank_by)),
    }


def reasons(row: Mapping[str, Any], by: Rules, rank_by: RankBy) -> list[ReviewReason]:
    """Return why a person should look at a row of the captions table."""
    text = (row["caption_raw"] or "").strip()
    words, size = text.split(), by.repeated_words
    runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    lead = margin(row["candidates"], rank_by)
    holds: dict[ReviewReason, bool] = {
        "empty": not text,
        "did_not_stop": row["finish_reason"] == "length",
        "repeats": len(set(runs)) < len(runs),
        "near_empty": bool(text) and sum(map(_is_word, words)) < by.min_words,
        "low_score": _is_low(row["clip_score"], by.min_clip_score),
        "low_logprob": _is_low(row["logprob_mean"], by.min_logprob),
        "narrow_margin": lead is not None and _is_low(lead, by.min_margin),
    }
    return [name for name in REASONS if holds[name]]


def _is_word(word: str) -> bool:
    return any(sign.isalnum() for sign in word)


def _is_low(value: float | None, least: float | None) -> bool:
    """Tell whether a score is low; one that is no number is."""
    return least is not None and not (value is not None and value >= least)


def margin(candidates: list[dict[str, Any]] | None, rank_by: RankBy) -> float | None:
    """Return how far the first candidate is before the next that says something else.

    In the unit of what `rank_by` names; None where there is no other candidate, or no score.
    """
    if not candidates:
        return None
    name, first = _SCORES[rank_by], candidates[0]
    other = next((one for one in candidates[1:] if one["text"] != first["text"]), None)
    if other is None or first[name] is None or other[name] is None:
        return None
    lead = round(float(first[name] - other[name]), 6)
    return lead if np.isfinite(lead) else None


def _with_margin(extra_json: str | None, lead: float | None) -> str | None:
    held: dict[str, Any] = json.loads(extra_json or "{}")
    held.pop("margin", None)
    if lead is not None:
        held["margin"] = lead
    return canonical_json(held) if held else None


def value(row: Mapping[str, Any], measure: Measure, rank_by: RankBy) -> float | None:
    """Return what a threshold of this measure is compared with in a row of the captions table."""
    if measure == "margin":
        return margin(row["candidates"], rank_by)
    score: float | None = row["clip_score" if measure == "clip_score" else "logprob_mean"]
    return score
