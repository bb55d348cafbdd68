"""Embeddings and questions in, how probable each answer is out.

Two things are asked of an image: does it show what the question speaks of, and which answer fits
best if it does. The first is CLIP's to say, by how much better the thing's own words fit than words
that are true of any image. The second is CLIP's, a captioner's, or both: what is compared is how
likely the statements of an answer are, less what the answer usually gets where the question makes
sense. Both levels are taken from some typical images of the collection, without any truth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from clipcap.errors import SettingsError
from clipcap.metrics.clipscore import WEIGHT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.choosing import ByClip, ByLikelihood, Images
    from clipcap.encoders import Encoder
    from clipcap.statements import Question

    Floats = NDArray[np.float64]

FEWEST: Final = 50
"""Typical images; of fewer it cannot be told what is usual."""
CLEAR: Final = 2.5
"""Standard deviations between images with and without a thing; halves of noise are nearer."""
_SHRINK: Final = 5.0  # images that a level is worth nothing of, so that one alone decides nothing
_PIECE: Final = re.compile(r"\d|[^\W\d]+|[^\w\s]")  # no token of a tokenizer is longer
_ROUNDS: Final = 100
_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Level:
    """What is usual for a question in a collection."""

    gain: float = 1.0
    shift: float = 0.0
    """What makes a probability, that the question makes sense, of how clear its thing is."""
    separation: float = 0.0
    """Standard deviations between images with and without it; 0: nobody could tell them apart."""
    usual_C: tuple[float, ...] = ()
    """What each compared answer gets; empty: it is not known."""
    slope: float = 1.0
    """What more than that is worth."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What B images answer to a question with A answers."""

    makes_sense_B: Floats
    """How probable it is that the image shows what the question speaks of."""
    score_BA: Floats
    """Probabilities; with that of no answer they sum to 1."""
    clip_score_BA: Floats
    """2.5 * max(cosine, 0), the mean of the statements; NaN of an answer without any."""
    logprob_BA: Floats | None = None
    """log p that the captioner says one of the statements, in nats."""


class Asker:
    """Asks any number of questions at once: each statement is encoded once, and read once."""

    def __init__(
        self,
        questions: Sequence[Question],
        clip: ByClip,
        language: ByLikelihood | None = None,
        *,
        by: str = "clip_score",
        temperature: float = 1.0,
    ) -> None:
        """Take questions and who compares their answers.

        Args:
            questions: as `clipcap.questions` understands them.
            clip: the encoder's text side.
            language: a captioner's language model, which knows `spoken(questions)`.
            by: `clip_score`, `logprob` or `both`.
            temperature: what the differences between answers are divided by.
        """
        self.questions = tuple(questions)
        self._clip, self._language, self._by = clip, language, by
        self._temperature = temperature
        self._seen = list(dict.fromkeys(f"{text}." for one in questions for text in _all(one)))
        self._spoken = spoken(questions)
        self._level_Q = [Level() for _ in questions]

    @property
    def statements(self) -> int:
        """How many different ones an image is compared with."""
        return len(self._seen)

    def learn(self, typical: Images) -> list[Level]:
        """Take what is usual from images of all the collection; fewer than 50 say nothing."""
        if len(typical) >= FEWEST:
            found = _Found(self, typical)
            self._level_Q = [_level(one, found) for one in self.questions]
        return self._level_Q

    def answered(self, images: Images) -> list[Answered]:
        """Return what images answer to each question."""
        found = _Found(self, images)
        return [
            self._one(question, level, found)
            for question, level in zip(self.questions, self._level_Q, strict=True)
        ]

    def _one(self, question: Question, level: Level, found: _Found) -> Answered:
        sense_B = _sigmoid(level.gain * found.clear_B(question) + level.shift)
        fit_BC = found.fit_BC(question)
        if level.usual_C:
            fit_BC = level.slope * (fit_BC - np.array(level.usual_C))
        part_BC = np.exp(_log_softmax(fit_BC / self._temperature)) * sense_B[:, None]
        at_C, shape = _compared(question), (len(sense_B), len(question.answers))
        score_BA = np.zeros(shape)
        score_BA[:, at_C] = part_BC
        if question.otherwise is not None:
            score_BA[:, question.otherwise] = 1 - sense_B
        clip_score_BA = np.full(shape, np.nan)
        clip_score_BA[:, at_C] = WEIGHT * np.maximum(found.cosine_BC(question), 0)
        logprob_BA = None
        if len(at_C) > 1 and self._language is not None:
            logprob_BA = np.full(shape, np.nan)
            logprob_BA[:, at_C] = found.logprob_BC(question)
        return Answered(sense_B, score_BA, clip_score_BA, logprob_BA)


class _Found:
    """What CLIP and the captioner say of images and all statements."""

    def __init__(self, asker: Asker, images: Images) -> None:
        same = [asker._seen] * len(images)
        self._by, self._scale = asker._by, asker._clip.scale
        self._cosine_BS = np.stack(asker._clip.cosines(images, same))
        self._at = {text.removesuffix("."): n for n, text in enumerate(asker._seen)}
        self._said = {text: n for n, text in enumerate(asker._spoken)}
        if asker._language is not None:
            told = asker._language.of(images, [asker._spoken] * len(images))
            self._logprob_BS = np.stack([one.sum_C for one, _ in told])

    def mean_B(self, texts: Sequence[str]) -> Floats:
        """Return the mean cosine of some statements."""
        cosine_B: Floats = self._cosine_BS[:, [self._at[text] for text in texts]].mean(axis=1)
        return cosine_B

    def cosine_BC(self, question: Question) -> Floats:
        """Return the cosine of each compared answer, the mean of its statements."""
        return np.stack([self.mean_B(said) for said in question.statements if said], axis=1)

    def logprob_BC(self, question: Question) -> Floats:
        """Return how likely it is that one of an answer's statements is said."""
        texts = [[self._said[text] for text in said] for said in question.statements if said]
        parts = [np.logaddexp.reduce(self._logprob_BS[:, at], axis=1) for at in texts]
        return np.stack(parts, axis=1)

    def fit_BC(self, question: Question) -> Floats:
        """Return how well each compared answer fits, as a logarithm."""
        fit_BC = self._scale * self.cosine_BC(question)
        if self._by == "clip_score" or fit_BC.shape[1] < 2:
            return fit_BC
        logprob_BC = self.logprob_BC(question)
        return logprob_BC if self._by == "logprob" else fit_BC + logprob_BC

    def clear_B(self, question: Question) -> Floats:
        """Return how much better what the question speaks of fits than what is always true."""
        neutral_B = self._scale * self.mean_B(question.neutral)
        subject = _subject(question)
        if subject:
            return self._scale * self.mean_B(subject) - neutral_B
        clear_B: Floats = np.logaddexp.reduce(self._scale * self.cosine_BC(question), axis=1)
        return clear_B - neutral_B


def spoken(questions: Sequence[Question]) -> list[str]:
    """Return the statements that a captioner is asked about: of answers that have a rival."""
    rivals = [one for one in questions if len(_compared(one)) > 1]
    return list(dict.fromkeys(text for one in rivals for said in one.statements for text in said))


def require_read_whole(encoder: Encoder, questions: Sequence[Question]) -> None:
    """Do nothing where the encoder's text side reads every statement to its end.

    Raises:
        SettingsError: names a question that is too long; the tokenizer would cut it silently.
    """
    longest = [(max(_all(one), key=size), one) for one in questions for size in (_bytes, _pieces)]
    longer = [f"{text} and" for text, _ in longest]
    vector_ND = encoder.encode_texts([*(text for text, _ in longest), *longer]).numpy()
    for n, (text, question) in enumerate(longest):
        if np.allclose(vector_ND[n], vector_ND[n + len(longest)], rtol=0, atol=_TINY):
            raise SettingsError(
                f"A question and its answers must be short enough for the text side of "
                f"{encoder.model_id}, but it does not read this to its end: {text[:200]!r}, "
                f"of the question {question.text[:200]!r}. Ask in fewer words."
            )


def _bytes(text: str) -> int:
    return len(text.encode())


def _pieces(text: str) -> int:
    return len(_PIECE.findall(text))


def _all(question: Question) -> list[str]:
    texts = [*question.subject, *question.neutral]
    return texts + [text for said in question.statements for text in said]


def _compared(question: Question) -> list[int]:
    """Return the answers that have statements."""
    return [n for n, said in enumerate(question.statements) if said]


def _subject(question: Question) -> tuple[str, ...]:
    """Return what must be true for any answer; with one answer alone, that."""
    at_C = _compared(question)
    return question.statements[at_C[0]] if len(at_C) == 1 else question.subject


def _level(question: Question, found: _Found) -> Level:
    """Return what is usual, of images that the question makes sense for where they stand apart."""
    clear_N, fit_NC = found.clear_B(question), found.fit_BC(question)
    gain, shift, separation = split(clear_N, np.ones(len(clear_N)))
    if separation < CLEAR:
        gain, shift, separation = 1.0, 0.0, 0.0
    weight_N = _sigmoid(gain * clear_N + shift) if separation else np.ones(len(clear_N))
    total = max(float(weight_N.sum()), _TINY)
    if question.kind == "yes_no" and fit_NC.shape[1] > 1:
        slope, start, apart = split(fit_NC[:, 0] - fit_NC[:, 1], weight_N)
        usual_C = (-start / slope, 0.0) if apart >= CLEAR else ()
        return Level(gain, shift, separation, usual_C, slope if usual_C else 1.0)
    count = total**2 / max(float((weight_N**2).sum()), _TINY)
    mean_C = weight_N @ fit_NC / total * count / (count + _SHRINK)
    return Level(gain, shift, separation, tuple(mean_C.tolist()))


def split(number_N: Floats, weight_N: Floats) -> tuple[float, float, float]:
    """Return how numbers fall into two kinds: a mixture of two normals of one variance.

    Args:
        number_N: the numbers.
        weight_N: how much each counts.

    Returns:
        gain and shift, by which `sigmoid(number * gain + shift)` is how probable the higher kind
        is, and by how many standard deviations the two differ.
    """
    low, high = (float(one) for one in np.quantile(number_N, [0.25, 0.95]))
    whole, share = max(float(weight_N.sum()), _TINY), 0.2
    variance = float(number_N.var()) / 4 + _TINY
    gain = shift = 0.0
    for _ in range(_ROUNDS):
        gain = (high - low) / variance
        shift = float(np.log(share / (1 - share))) + (low**2 - high**2) / (2 * variance)
        high_N = weight_N * _sigmoid(gain * number_N + shift)
        low_N, part = weight_N - high_N, float(high_N.sum())
        share = float(np.clip(part / whole, 1e-3, 1 - 1e-3))
        high = float(high_N @ number_N) / max(part, _TINY)
        low = float(low_N @ number_N) / max(whole - part, _TINY)
        spread = low_N @ (number_N - low) ** 2 + high_N @ (number_N - high) ** 2
        variance = float(spread) / whole + _TINY
    return gain, shift, (high - low) / float(np.sqrt(variance))


def _sigmoid(logit_B: Floats) -> Floats:
    clipped_B = np.clip(logit_B, -500, 500)
    probability_B: Floats = 1 / (1 + np.exp(-clipped_B))
    return probability_B


def _log_softmax(logit_BC: Floats) -> Floats:
    whole_B1 = np.logaddexp.reduce(logit_BC, axis=1, keepdims=True)
    normalised_BC: Floats = logit_BC - whole_B1
    return normalised_BC
