"""Stored embeddings and candidate texts in, the ones that fit best out: a table for each shard.

The tables lie in a folder of the caller's and are no part of the output; each is one object whose
footer says what it was made from, so that a second call computes only what is missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from clipcap import (
    asides,
    candidatefiles,
    choicerows,
    commits,
    embedding,
    layout,
    models,
    rows,
    storage,
    tables,
    typical,
)
from clipcap.candidatefiles import Candidates
from clipcap.commits import Commit, Fingerprint
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.layout import Shard
from clipcap.models import EncoderRef
from clipcap.settings import Settings, digest
from clipcap.stages import caption

if TYPE_CHECKING:
    from clipcap.choosing import ByClip, ByLikelihood, Images

VERSION: Final = 1
"""Raised by hand when the meaning of a row changes."""
_UNJUDGED: Final = {"review": {"measured": False}}
_AT_ONCE: Final = 1 << 20  # images times candidates that are held at a time


class ChooseSettings(Settings):
    """What images choose from, and by what. Every field changes the result."""

    candidates: str = ""
    """Candidate texts: a .txt file with one a line, or a JSON list, for all images; or a file of
    captions in any form that `clipcap train --captions` reads: each image has its own."""
    by: Literal["clip_score", "logprob", "both"] = "clip_score"
    """`clip_score`: the likeness of image and text; `logprob`: how likely the captioner finds the
    text; `both`: the product of the two probabilities."""
    captioner: str = models.BUNDLED
    """`bundled`, a captioner folder, or `promoted`; for `logprob` and `both`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the language model."""
    typical: int = Field(default=32, ge=0, le=1024)
    """Images of the output that tell how likely a text is whatever the image; with 0 the best
    chance has what the captioner always says."""
    ends: bool = True
    """Whether the stop counts: a candidate is a whole caption, else it may go on."""
    top_k: int = Field(default=5, gt=0)
    """Rows of the best candidates of each image."""


@dataclass(slots=True)
class Choices:
    """What became of a call."""

    folder: str
    candidates: Candidates
    images: int = 0
    """Images with candidates."""
    without: int = 0
    """Live images that nobody gave a candidate."""
    computed: int = 0
    """Images that were not there already."""
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    """Tables: written, as they must be, of shards that are gone."""
    chosen: Counter[str] = field(default_factory=Counter)
    """How many images chose each candidate, where all images have the same."""


def choose(
    out: str, folder: str, *, settings: ChooseSettings, encoder: EmbedSettings, speed: Speed
) -> Choices:
    """Write for every live image of an output which candidates fit it best; no image is read.

    The tables lie at `dt=.../{shard}.parquet` of the folder; `out` is a canonical URL, `encoder`
    that of the embeddings, whose text side reads the candidates.

    Raises:
        SettingsError: no candidates, a captioner that does not fit the encoder, a candidate that
            is too long for it, or a folder that holds something else.
        NotFoundError: there is no such file, or a shard is not embedded.
    """
    if not settings.candidates:
        raise SettingsError("There must be candidates to choose from: give --candidates FILE.")
    before = commits.made_from(out, storage.canonical(folder), "choices_of")
    work = _Work(out, storage.canonical(folder), settings, encoder, speed)
    done = Choices(work.folder, work.candidates)
    card = None if work.captioner is None else work.captioner.card
    sources = asides.sources(out, work.ref, card)
    for shard, source in sources.items():
        _count(_commit(shard, source, work, done), done)
    done.removed = asides.removed(before, list(sources))
    return done


def _commit(shard: Shard, source: Commit, work: _Work, done: Choices) -> Commit:
    """Return the table of a shard, written if it is not as it must be."""
    url = layout.in_folder(work.folder, shard)
    wanted = work.wanted(source)
    found = rows.standing(url, wanted)
    if found.done is not None:
        done.unchanged += 1
        return found.done
    live = rows.embedded(source.url)
    digests = work.digests(live["image_id"].to_pylist())
    offered = live.filter(pc.is_in(live["image_id"], pa.array(digests, pa.string())))
    kept = _of_same_candidates(rows.live_rows(found.rows, offered), digests)
    todo = rows.missing(offered, kept)
    made = rows.joined(kept, work.rows(todo, digests))
    done.written += 1
    done.computed += todo.num_rows
    best = made.filter(pc.equal(made["rank"], 1))["candidate_index"].to_pylist()
    metadata = {
        "choices_of": work.out,
        "members": wanted.members,
        "by": work.settings.by,
        "model_id": work.ref.model_id,
        "captioner_id": work.captioner.card.captioner_id if work.captioner else "",
        "captioner_sha256": work.captioner.sha256 if work.captioner else "",
        "without": str(live.num_rows - len(best)),
        "chosen": json.dumps(Counter(best)),
    }
    return commits.publish(url, made, fingerprint=wanted, run_id="", metadata=metadata)


def _of_same_candidates(kept: pa.Table | None, digests: dict[str, str]) -> pa.Table | None:
    if kept is None:
        return None
    made = zip(kept["image_id"].to_pylist(), kept["candidates_sha256"].to_pylist(), strict=True)
    return kept.filter(pa.array([digests[one] == sha256 for one, sha256 in made], pa.bool_()))


def _count(commit: Commit, done: Choices) -> None:
    done.without += int(commit.metadata["without"])
    for index, count in json.loads(commit.metadata["chosen"]).items():
        done.images += count
        if done.candidates.same:
            done.chosen[done.candidates.same[int(index)]] += count


def asked(captioner: str, precision: str, encoder: EmbedSettings) -> caption.Chosen:
    """Return the captioner whose language model is asked; how it captions does not matter.

    Raises:
        SettingsError: nobody knows it, or it does not fit the encoder.
    """
    told = {"captioner": captioner, "precision": precision, **_UNJUDGED}
    return caption.choose(caption.CaptionSettings.model_validate(told), encoder)


class _Work:
    """What all shards have in common; models are loaded when the first image needs them."""

    def __init__(
        self, out: str, folder: str, settings: ChooseSettings, encoder: EmbedSettings, speed: Speed
    ) -> None:
        self.out, self.folder, self.settings = out, folder, settings
        self.encoder, self.speed = encoder, speed
        self.ref: EncoderRef = embedding.reference(encoder)
        self.captioner: caption.Chosen | None = None
        if settings.by != "clip_score":
            self.captioner = asked(settings.captioner, settings.precision, encoder)
        self.candidates = candidatefiles.read(settings.candidates, out)
        self._offered = digest([self.candidates.same, dict(self.candidates.own)])

    def wanted(self, source: Commit) -> Fingerprint:
        """Return the fingerprint that the table of a shard must have."""
        how = self.settings.model_dump(mode="json", include={"by", "top_k"})
        if self.captioner is not None:
            names = {"precision", "typical", "ends"}
            how |= self.settings.model_dump(mode="json", include=names)
            how |= {"captioner": self.captioner.sha256, "typical_images": self._typical_id}
        recipe = digest(["choose", VERSION, layout.RECIPES, source.recipe, how])
        return Fingerprint(recipe, digest([source.metadata["members"], self._offered]))

    def digests(self, image_ids: Sequence[str]) -> dict[str, str]:
        """Return the digest of the candidates of each image that has some."""
        if self.candidates.same:
            return dict.fromkeys(image_ids, digest(self.candidates.same))
        own = self.candidates.own
        return {image_id: digest(own[image_id]) for image_id in image_ids if image_id in own}

    def rows(self, todo: pa.Table, digests: dict[str, str]) -> pa.Table:
        """Return the rows of images that have none yet."""
        from clipcap import choosing

        made = [choicerows.SCHEMA.empty_table()]
        signed = {"model_id": self.ref.model_id, "captioner_id": None}
        if self.captioner is not None:
            signed["captioner_id"] = self.captioner.card.captioner_id
        most = max((len(self.candidates.of(image_id)) for image_id in digests), default=1)
        size = max(1, _AT_ONCE // most)
        for at in range(0, todo.num_rows, size):
            part = todo.slice(at, size)
            columns = part.select(["image_id", "key", "content_sha256"]).to_pylist()
            texts = [self.candidates.of(row["image_id"]) for row in columns]
            fits = choosing.fits(_images(part), texts, self._clip, self._language)
            images = [
                {**row, **signed, "candidates_sha256": digests[row["image_id"]]} for row in columns
            ]
            made.append(choicerows.rows(images, texts, fits, self.settings.top_k))
        return pa.concat_tables(made)

    @cached_property
    def _clip(self) -> ByClip | None:
        if self.settings.by == "logprob":
            return None
        from clipcap.choosing import ByClip

        encoder = embedding.load(self.encoder, self.speed)
        return ByClip(encoder, encoder.logit_scale)

    @cached_property
    def _language(self) -> ByLikelihood | None:
        if self.captioner is None:
            return None
        from clipcap.choosing import ByLikelihood

        loaded = caption.load(self.captioner, caption.CaptionSpeed(device=self.speed.device))
        own = dict.fromkeys(text for texts in self.candidates.own.values() for text in texts)
        texts = self.candidates.same or tuple(own)
        usual = None if self._typical is None else _images(self._typical)
        return ByLikelihood(loaded, texts, usual, ends=self.settings.ends)

    @property
    def _typical_id(self) -> str:
        return "" if self._typical is None else tables.metadata(self._typical)["fingerprint"]

    @cached_property
    def _typical(self) -> pa.Table | None:
        count = self.settings.typical
        if self.captioner is None or count == 0:
            return None
        return typical.images(self.folder, self.out, self.ref, count)


def _images(table: pa.Table) -> Images:
    from clipcap.choosing import Images

    return Images(tables.vectors(table), table["embedding_norm"].to_numpy())
