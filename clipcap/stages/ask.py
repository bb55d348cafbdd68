"""Stored embeddings and questions in, the answers of every image out: a table for each shard.

The tables lie in a folder of the caller's, as those of `clipcap.stages.choose`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipcap import (
    answerrows,
    asides,
    commits,
    embedding,
    layout,
    models,
    rows,
    storage,
    tables,
    typical,
)
from clipcap.answerrows import Judge
from clipcap.commits import Commit, Fingerprint
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.layout import Shard
from clipcap.models import EncoderRef
from clipcap.questions import understood
from clipcap.settings import Settings, digest
from clipcap.stages import caption, choose
from clipcap.statements import Question

if TYPE_CHECKING:
    from clipcap.asking import Asker
    from clipcap.choosing import Images

VERSION: Final = 1
"""Raised by hand when the meaning of a row changes."""
UNKNOWN: Final = -1
"""Stands in the counts for images that have no answer."""
_AT_ONCE: Final = 1 << 20  # images times statements that are held at a time


class Asked(Settings):
    """A question and its candidate answers."""

    question: str
    """In English, or in any language that the encoder's text side reads."""
    answers: tuple[str, ...] = ()
    """Empty: those that the question implies: yes and no, 0 to 10, this or that."""


class AskSettings(Settings):
    """What images are asked, and who answers. Every field changes the result."""

    questions: tuple[Asked, ...] = ()
    """Each with its candidate answers."""
    by: Literal["clip_score", "logprob", "both"] = "clip_score"
    """Who compares the answers: `clip_score`: CLIP; `logprob`: the captioner, by how likely it
    finds their statements; `both`. Whether a thing is there at all is CLIP's to say."""
    captioner: str = models.BUNDLED
    """`bundled`, a captioner folder, or `promoted`; for `logprob` and `both`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the language model."""
    typical: int = Field(default=256, ge=0, le=1024)
    """Images of the output that tell what answers usually get; with 0, or fewer than 50 images,
    scores are the model's own."""
    ends: bool = False
    """Whether a statement must be a whole caption for the captioner, or may go on."""
    temperature: float = Field(default=1.0, gt=0)
    """What the differences between answers are divided by; more makes scores more alike."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest score of an accepted answer."""
    top_k: int = Field(default=5, gt=0)
    """Rows of the best answers of each image to each question."""


@dataclass(slots=True)
class Answers:
    """What became of a call."""

    folder: str
    questions: tuple[Question, ...]
    images: int = 0
    computed: int = 0
    """Images that were not there already."""
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    """Tables: written, as they must be, of shards that are gone."""
    given: list[Counter[int]] = field(default_factory=list)
    """For each question how many images have each answer; `UNKNOWN`: none."""


def ask(
    out: str, folder: str, *, settings: AskSettings, encoder: EmbedSettings, speed: Speed
) -> Answers:
    """Write for every live image of an output how it answers some questions; no image is read.

    The tables lie at `dt=.../{shard}.parquet` of the folder; `out` is a canonical URL, `encoder`
    that of the embeddings, whose text side reads the answers' statements.

    Raises:
        SettingsError: no question, one without answers or too long, a captioner that does not fit
            the encoder, embeddings that are not finite, or a folder that holds something else.
        NotFoundError: there is no image, or a shard is not embedded.
    """
    folder = storage.canonical(folder)
    work = _Work(out, folder, settings, encoder, speed)
    before = commits.made_from(out, folder, "answers_of")
    card = None if work.captioner is None else work.captioner.card
    sources = asides.sources(out, work.ref, card)
    done = Answers(folder, work.questions, given=[Counter() for _ in work.questions])
    for shard, source in sources.items():
        _count(_commit(shard, source, work, done), done)
    done.removed = asides.removed(before, list(sources))
    return done


def _commit(shard: Shard, source: Commit, work: _Work, done: Answers) -> Commit:
    """Return the table of a shard, written if it is not as it must be."""
    url = layout.in_folder(work.folder, shard)
    wanted = work.wanted(source)
    found = rows.standing(url, wanted)
    if found.done is not None:
        done.unchanged += 1
        return found.done
    live = rows.embedded(source.url)
    kept = rows.live_rows(found.rows, live)
    todo = rows.missing(live, kept)
    made = rows.joined(kept, work.rows(todo))
    done.written += 1
    done.computed += todo.num_rows
    metadata = {
        "answers_of": work.out,
        "members": wanted.members,
        "by": work.settings.by,
        "questions": json.dumps([[one.text, one.kind, one.answers] for one in work.questions]),
        "threshold": repr(work.settings.threshold),
        "model_id": work.ref.model_id,
        "captioner_id": work.captioner.card.captioner_id if work.captioner else "",
        "captioner_sha256": work.captioner.sha256 if work.captioner else "",
        "images": str(live.num_rows),
        "given": json.dumps(_given(made, len(work.questions))),
    }
    return commits.publish(url, made, fingerprint=wanted, run_id="", metadata=metadata)


def _given(made: pa.Table, count: int) -> list[dict[int, int]]:
    """Return for each question how many images have each answer, or none."""
    columns = ("question_index", "answer_index", "rank", "accepted")
    question_R, answer_R, rank_R, accepted_R = (made[name].to_numpy() for name in columns)
    said_R = np.where(accepted_R, answer_R, UNKNOWN)
    firsts = [said_R[(rank_R == 1) & (question_R == n)].tolist() for n in range(count)]
    return [Counter(one) for one in firsts]


def _count(commit: Commit, done: Answers) -> None:
    done.images += int(commit.metadata["images"])
    for counted, given in zip(done.given, json.loads(commit.metadata["given"]), strict=True):
        counted.update({int(answer): count for answer, count in given.items()})


class _Work:
    """What all shards have in common; models are loaded when the first image needs them."""

    def __init__(
        self, out: str, folder: str, settings: AskSettings, encoder: EmbedSettings, speed: Speed
    ) -> None:
        self.out, self.folder, self.settings = out, folder, settings
        self.encoder, self.speed = encoder, speed
        if not settings.questions:
            raise SettingsError('There must be a question: give --question "is there a cat?".')
        self.questions = tuple(understood(one.question, one.answers) for one in settings.questions)
        self.ref: EncoderRef = embedding.reference(encoder)
        self.captioner: caption.Chosen | None = None
        if settings.by != "clip_score":
            self.captioner = choose.asked(settings.captioner, settings.precision, encoder)

    def wanted(self, source: Commit) -> Fingerprint:
        """Return the fingerprint that the table of a shard must have."""
        recipe = digest(["ask", VERSION, layout.RECIPES, source.recipe, self._how])
        return Fingerprint(recipe, source.metadata["members"])

    @cached_property
    def _how(self) -> str:
        names = {"by", "typical", "temperature", "threshold", "top_k"}
        how = self.settings.model_dump(mode="json", include=names)
        if self.captioner is not None:
            how |= self.settings.model_dump(mode="json", include={"precision", "ends"})
            how |= {"captioner": self.captioner.sha256}
        asked = [asdict(one) for one in self.questions]
        usual = "" if self._typical is None else tables.metadata(self._typical)["fingerprint"]
        return digest([how, asked, usual])

    def rows(self, todo: pa.Table) -> pa.Table:
        """Return the rows of images that have none yet."""
        made = [answerrows.SCHEMA.empty_table()]
        if todo.num_rows:
            judge = Judge(self.settings.threshold, self.settings.top_k, self._captioner_id)
            size = max(1, _AT_ONCE // self._asker.statements)
            for at in range(0, todo.num_rows, size):
                part = todo.slice(at, size)
                found = self._asker.answered(_images(part))
                made += [
                    answerrows.rows(part, (n, question), answered, judge)
                    for n, (question, answered) in enumerate(
                        zip(self.questions, found, strict=True)
                    )
                ]
        return pa.concat_tables(made)

    @property
    def _captioner_id(self) -> str | None:
        return None if self.captioner is None else self.captioner.card.captioner_id

    @cached_property
    def _asker(self) -> Asker:
        from clipcap import asking
        from clipcap.choosing import ByClip, ByLikelihood

        encoder, settings = embedding.load(self.encoder, self.speed), self.settings
        asking.require_read_whole(encoder, self.questions)
        language, texts = None, asking.spoken(self.questions)
        if self.captioner is not None and texts:
            loaded = caption.load(self.captioner, caption.CaptionSpeed(device=self.speed.device))
            language = ByLikelihood(loaded, texts, None, ends=settings.ends)
        by_clip = ByClip(encoder, encoder.logit_scale)
        asker = asking.Asker(
            self.questions, by_clip, language, by=settings.by, temperature=settings.temperature
        )
        if self._typical is not None:
            asker.learn(_images(self._typical))
        return asker

    @cached_property
    def _typical(self) -> pa.Table | None:
        from clipcap.asking import FEWEST

        count = self.settings.typical
        if count < FEWEST:
            return None
        found = typical.images(self.folder, self.out, self.ref, count, least=FEWEST)
        return found if found.num_rows >= FEWEST else None


def _images(table: pa.Table) -> Images:
    from clipcap.choosing import Images

    return Images(tables.vectors(table), table["embedding_norm"].to_numpy())
