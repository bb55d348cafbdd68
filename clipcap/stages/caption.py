"""Stored embeddings and a captioner in, captions table out: one row per image, candidates kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipcap import (
    cards,
    commits,
    embedding,
    layout,
    models,
    moved,
    review,
    rows,
    tables,
    wordlists,
)
from clipcap.cards import Card, Choice
from clipcap.commits import Commit, Fingerprint
from clipcap.embedding import EmbedSettings, Speed
from clipcap.encoding import peak_gpu_bytes
from clipcap.layout import Run, Shard
from clipcap.metrics.clipscore import clip_score
from clipcap.outcomes import Outcome, State, committed
from clipcap.review import RankBy, ReviewSettings, Rules
from clipcap.settings import Settings, canonical_json, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.candidates import Candidate
    from clipcap.captioner import Captioner

VERSION: Final = 1
"""Raised by hand when the meaning of a caption row changes."""
_NEW: Final = {"rank_by", "precision"}
_TURNS: Final = 16  # batches of prefixes that are held at a time
_LOCK = Lock()
_LOADED: dict[tuple[str, str, str], Captioner] = {}


class CaptionSettings(Settings):
    """Which captioner writes the captions, and which are doubted. Every field changes results."""

    captioner: str = models.BUNDLED
    """`bundled`, a captioner folder (card, mapper, language model), or `promoted`: the one that
    `clipcap models promote` has put in charge of the output."""
    decode: Choice | None = None
    """Decoder and its settings, in the place of those on the card, such as `{"name": "greedy"}`."""
    rank_by: RankBy = "logprob"
    """Which candidate is the caption: the likeliest, or the nearest to the image (CLIPScore)."""
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """Of the language model. `bf16` is 1.7 times as fast where the processor has it, and gives
    other captions where two words are nearly as likely; `int8` 1.3 times as fast as that, where it
    has VNNI too, with three times the rounding."""
    review: ReviewSettings = ReviewSettings()
    """Which captions a person should look at or nobody sees; changes none of them."""


class CaptionSpeed(Settings):
    """How fast; changes no result."""

    device: str = "auto"
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`."""
    batch_size: int = Field(default=64, gt=0)
    """Images captioned at a time; one that is done leaves its place to the next."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A captioner by name and digest, and how it decodes; nothing is loaded."""

    folder: str
    card: Card
    sha256: str
    decode: Choice
    settings: CaptionSettings
    rules: Rules


def choose(settings: CaptionSettings, encoder: EmbedSettings) -> Chosen:
    """Return the captioner, once it is sure that it fits the encoder.

    Raises:
        SettingsError: nobody knows it, it reads embeddings of another encoder, or its thresholds
            were measured on other captions.
    """
    folder = models.captioner_folder(settings.captioner)
    card = cards.read_card(folder)
    ref = embedding.reference(encoder)
    cards.require_fit(
        card,
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )
    decode = settings.decode or card.decode
    sha256 = cards.captioner_digest(folder)
    measured = review.read_card(folder) if settings.review.measured else None
    if measured is not None:
        review.require_same(measured, sha256=sha256, decode=decode, rank_by=settings.rank_by)
    rules = review.rules(settings.review, measured)
    return Chosen(folder, card, sha256, decode, settings, rules)


def caption(
    shard: Shard,
    *,
    run: Run,
    settings: CaptionSettings,
    encoder: EmbedSettings,
    speed: CaptionSpeed,
) -> Outcome:
    """Caption the embedded images of a shard; no image is read.

    Raises:
        NotFoundError: the shard is not embedded, or has lost images since.
        SettingsError: its embeddings were made by another encoder than the captioner's.
    """
    started = time.time()
    chosen = choose(settings, encoder)
    ref = embedding.reference(encoder)
    source = embedding.committed(shard, ref, out=run.out)
    _require_fit(chosen.card, source)
    wanted = Fingerprint(recipe(chosen, source), source.metadata["members"], chosen.rules.text)
    place = partial(layout.captions, run.out, captioner_id=chosen.card.captioner_id)
    found = rows.standing(place(shard), wanted)
    if found.done:
        return _outcome(shard, "unchanged", found.done, started, Captioned())
    live = tables.read(source.url)
    kept = rows.live_rows(found.rows, live)
    todo = moved.with_source(rows.missing(live, kept), shard, out=run.out)
    same = moved.found(todo, shard, run=run, recipe=wanted.recipe, url=place)
    kept, todo = rows.together(kept, same.rows), rows.missing(todo, same.rows)
    made = captioned(todo, chosen, run=run, encoder=encoder, speed=speed)
    table = rows.joined(kept, tables.from_rows(made.rows, tables.SCHEMAS["captions"]))
    table = review.judged(table, chosen.rules, settings.rank_by)
    metadata = {
        "members": wanted.members,
        "captioner_id": chosen.card.captioner_id,
        "captioner_sha256": chosen.sha256,
        "prefix_length": str(chosen.card.prefix_length),
        "decode": canonical_json(chosen.decode.model_dump(mode="json")),
        "model_id": ref.model_id,
    }
    url, run_id = place(shard), run.run_id
    commit = commits.publish(url, table, fingerprint=wanted, run_id=run_id, metadata=metadata)
    return _outcome(shard, "written", commit, started, made)


def recipe(chosen: Chosen, source: Commit) -> str:
    """Return the digest of everything but the images that makes captions what they are.

    `source` is the embeddings that they are of. What captions are judged by is no part of it.
    """
    how = [
        chosen.decode.model_dump(mode="json"),
        chosen.settings.model_dump(include=_NEW, exclude_defaults=True),
        wordlists.digests(chosen.decode.settings),
    ]
    how = [part for part in how if part]  # what nobody has asked for is as it always was
    return digest(["caption", VERSION, layout.RECIPES, source.recipe, chosen.sha256, *how])


def _require_fit(card: Card, source: Commit) -> None:
    cards.require_fit(
        card,
        model_id=source.metadata.get("model_id", ""),
        sha256=source.metadata.get("model_sha256"),
        preprocess_sha256=source.metadata.get("preprocess_sha256"),
        dim=int(source.metadata.get("dim", 0)),
    )


@dataclass(slots=True)
class Captioned:
    """What captioning some images gave: rows, seconds inside captioner and text encoder, where."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    model_s: float = 0.0
    device: str = ""
    peak_gpu_bytes: int = 0


def _outcome(
    shard: Shard, state: State, commit: Commit, started: float, made: Captioned
) -> Outcome:
    return committed(
        "caption",
        shard,
        commit,
        state=state,
        started_at=started,
        computed=len(made.rows),
        model_s=made.model_s,
        device=made.device,
        peak_gpu_bytes=made.peak_gpu_bytes,
        of=commit.metadata.get("captioner_id", ""),
    )


def load(chosen: Chosen, speed: CaptionSpeed) -> Captioner:
    """Return the captioner, loaded once in a process whichever thread asks first."""
    from clipcap import captioner
    from clipcap.encoding import choose_device

    device = str(choose_device(speed.device))
    with _LOCK:
        key = (chosen.sha256, chosen.settings.precision, device)
        if key not in _LOADED:
            _LOADED[key] = captioner.load(chosen.folder, device).for_captions(
                chosen.settings.precision
            )
        return _LOADED[key]


def captioned(
    todo: pa.Table, chosen: Chosen, *, run: Run, encoder: EmbedSettings, speed: CaptionSpeed
) -> Captioned:
    """Return rows of the captions table for rows of embeddings that have their `source_uri`."""
    made = Captioned()
    if todo.num_rows == 0:
        return made
    import torch

    captioner = load(chosen, speed)
    texts = embedding.load(encoder, Speed(device=speed.device))
    size = _TURNS * speed.batch_size
    for at in range(0, todo.num_rows, size):
        part = todo.slice(at, size)
        embedding_BD = tables.vectors(part)
        norm_B = torch.tensor(part["embedding_norm"].to_numpy())
        began = time.perf_counter()
        found_BK = captioner.caption(
            torch.tensor(embedding_BD), norm_B, decode=chosen.decode, slots=speed.batch_size
        )
        flat = [candidate.text for found_K in found_BK for candidate in found_K]
        text_ND = texts.encode_texts(flat).numpy()
        made.model_s += time.perf_counter() - began
        scores = _clip_scores(embedding_BD, text_ND, [len(found_K) for found_K in found_BK])
        columns = part.select(["image_id", "key", "source_uri", "content_sha256"]).to_pylist()
        for row, found_K, score_K in zip(columns, found_BK, scores, strict=True):
            ranked = sorted(zip(found_K, score_K, strict=True), key=_RANKS[chosen.settings.rank_by])
            made.rows.append({**row, **_row(ranked), **_signed(chosen, run)})
    made.device, made.peak_gpu_bytes = str(captioner.device), peak_gpu_bytes(captioner.device)
    return made


def _clip_scores(
    embedding_BD: NDArray[np.float32], text_ND: NDArray[np.float32], counts: Sequence[int]
) -> list[list[float]]:
    """Return CLIPScore, 2.5 * max(cosine, 0), of each image's candidates."""
    image_ND = np.repeat(embedding_BD, counts, axis=0)
    score_N = clip_score(image_ND, text_ND)
    ends = np.cumsum(counts)
    return [score_N[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]


_RANKS: Final[dict[str, Callable[[tuple[Candidate, float]], float]]] = {
    "logprob": lambda found: -found[0].logprob_mean,
    "clip_score": lambda found: -found[1],
}


def _row(ranked: Sequence[tuple[Candidate, float]]) -> dict[str, Any]:
    """Return one image's row, not judged yet; the first candidate is the caption."""
    best, score = ranked[0]
    return {
        "caption_raw": best.text,
        "status": "ok",
        "clip_score": score,
        "logprob_mean": best.logprob_mean,
        "token_count": len(best.token_ids),
        "finish_reason": best.finish_reason,
        "candidates": [
            {"text": one.text.strip(), "logprob_mean": one.logprob_mean, "clip_score": score}
            for one, score in ranked
        ],
        "created_at": datetime.now(UTC),
    }


def _signed(chosen: Chosen, run: Run) -> dict[str, str]:
    return {
        "captioner_id": chosen.card.captioner_id,
        "captioner_sha256": chosen.sha256,
        "run_id": run.run_id,
    }
