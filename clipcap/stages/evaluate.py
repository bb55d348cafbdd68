"""The captions of an output and what people wrote for its images in, the COCO metrics out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

import clipcap
from clipcap import captionfiles, embedding, metrics
from clipcap.embedding import EmbedSettings, Speed
from clipcap.metrics import clipscore, java, joining, scorefile, tokenizer
from clipcap.metrics.joining import Joined, References
from clipcap.settings import Settings, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipcap.encoders import Encoder

CLIP_METRICS: Final = ("clip_score", "ref_clip_score")
JAVA_METRICS: Final = ("meteor", "spice")
_BLOCK: Final = 1_024  # images whose texts are encoded at a time


class EvaluateSettings(Settings):
    """What is judged, and by what."""

    captioner: str | None = None
    """Name of the captioner whose captions are judged; may be left out where there is but one."""
    among: tuple[str, ...] = ()
    """Other captioners that must have captioned an image too, for it to be judged."""
    references: str = ""
    """File of captions by people, joined by key, address or file name; empty: those that images
    came with."""
    reference_clip: bool = True
    """Encode captions and references with the encoder's text side, for RefCLIPScore."""
    java: bool = True
    """Start METEOR and SPICE too, where pycocoevalcap and Java are installed."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric over all images that were judged; `reason` says why there is no value."""

    metric: str
    value: float | None
    signature: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the captions of one captioner are worth."""

    captioner_id: str
    model_id: str
    images: int
    """Images judged: live, captioned and with references."""
    without_references: int
    """Live, captioned images that nobody wrote a caption for."""
    without_caption: int
    """Live images with references that no caption of the same content could be found of: by this
    captioner, or by one that it was to be compared with."""
    empty: int
    """Judged images whose caption was suppressed: they count, with an empty caption."""
    signature: str
    """What the signatures of all figures have in common."""
    basis: str
    """Digest of what the scores come from: see `basis`."""
    figures: tuple[Figure, ...]
    table: pa.Table
    """One row for each image, as `scorefile.SCHEMA` says."""

    def metadata(self) -> dict[str, str]:
        """Return what the footer of a score file says."""
        told = [asdict(figure) for figure in self.figures]
        return {
            "captioner_id": self.captioner_id,
            "without_references": str(self.without_references),
            "without_caption": str(self.without_caption),
            "model_id": self.model_id,
            "signature": self.signature,
            "basis": self.basis,
            "clipcap": clipcap.__version__,
            "figures": json.dumps(told),
        }


def evaluate(
    out: str, *, settings: EvaluateSettings, encoder: EmbedSettings, speed: Speed
) -> Evaluation:
    """Judge the captions that one captioner wrote for the live images of an output.

    Images are joined by `image_id` and content; no image is read.

    Args:
        out: the canonical URL of the output.
        settings: what is judged, and by what.
        encoder: the encoder of the captions table, whose text side RefCLIPScore needs.
        speed: the device of the text side.

    Raises:
        SettingsError: there are no captions, none by this captioner, or no references.
    """
    name = joining.choose(out, settings.captioner)
    said = references(out, settings.references)
    joined = joining.joined(out, name, settings.among, said)
    return judged(joined, settings=settings, encoder=encoder, speed=speed)


def figures(footer: Mapping[str, str]) -> list[Figure]:
    """Return the figures by the footer of a score file."""
    return [Figure(**told) for told in json.loads(footer["figures"])]


def references(out: str, file: str) -> References | None:
    """Return what people wrote by a file, by image; None without one: what the images came with.

    Raises:
        SettingsError: it is of no known form, or of no image of the output.
        NotFoundError: it is not there.
    """
    return captionfiles.join(file, out).captions if file else None


def basis(recipes: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the digest of what scores come from; same digest, same scores.

    Args:
        recipes: those of the captions, which name captioner, decoder and encoder.
        rows: images with `image_id`, `content_sha256` and `reference_captions`, in any order.
    """
    names = ("image_id", "content_sha256", "reference_captions")
    over = sorted([row[name] for name in names] for row in rows)
    version = [tokenizer.NAME, tokenizer.VERSION, scorefile.VERSION, clipcap.__version__]
    return digest(["scores", version, sorted(set(recipes)), over])


def judged(
    joined: Joined, *, settings: EvaluateSettings, encoder: EmbedSettings, speed: Speed
) -> Evaluation:
    """Judge captions that stand beside what people wrote; arguments as of `evaluate`."""
    captions = [row["caption"] or "" for row in joined.rows]
    by_people = [row["reference_captions"] for row in joined.rows]
    texts = metrics.score(captions, by_people)
    columns = _text_columns(texts)
    figures = [
        Figure(
            metric, value, texts.signature(metric), "" if value is not None else metrics.ONE_IMAGE
        )
        for metric, value in texts.figures.items()
    ]
    for made, column in (
        *_clip(joined, texts, settings, encoder, speed),
        *_java(captions, by_people, texts, settings),
    ):
        figures.append(made)
        columns[made.metric] = column
    return Evaluation(
        captioner_id=joined.captioner_id,
        model_id=", ".join(sorted(joined.models)),
        images=len(joined.rows),
        without_references=joined.without_references,
        without_caption=joined.without_caption,
        empty=sum(not caption for caption in captions),
        signature=texts.common_signature,
        basis=basis(joined.recipes, joined.rows),
        figures=tuple(figures),
        table=_table(joined.rows, columns),
    )


def _text_columns(texts: metrics.TextScores) -> dict[str, Sequence[Any] | None]:
    """Return the columns of a score file that words alone give."""
    return {
        **dict(zip(metrics.BLEU, texts.bleu_NK.T.tolist(), strict=True)),
        "rouge_l": texts.rouge_N.tolist(),
        "cider_d": texts.cider_N.tolist() if texts.images > 1 else None,
        "words": texts.bleu.words_N.tolist(),
        "reference_words": texts.bleu.reference_words_N.tolist(),
        "matched": texts.bleu.matched_NK.tolist(),
    }


_Column = Sequence[float] | None


def _clip(
    joined: Joined,
    texts: metrics.TextScores,
    settings: EvaluateSettings,
    encoder: EmbedSettings,
    speed: Speed,
) -> list[tuple[Figure, _Column]]:
    """Return CLIPScore as the captions table has it, and RefCLIPScore."""
    model = f"|encoder:{', '.join(sorted(joined.models))}"
    scores = [row["clip_score"] if row["caption"] else 0.0 for row in joined.rows]
    lacking = sum(score is None for score in scores)
    if lacking:
        reason = f"{lacking} captions have no clip_score: caption them again"
        signed = (texts.signature(metric) + model for metric in CLIP_METRICS)
        pairs = zip(CLIP_METRICS, signed, strict=True)
        return [(Figure(metric, None, signature, reason), None) for metric, signature in pairs]
    mean = sum(scores) / len(scores)
    first = Figure("clip_score", mean, texts.signature("clip_score") + model)
    signature = texts.signature("ref_clip_score") + model
    if reason := _unlike(joined, settings, encoder):
        return [(first, scores), (Figure("ref_clip_score", None, signature, reason), None)]
    found_N = _ref_clip_scores(joined.rows, scores, embedding.load(encoder, speed))
    second = Figure("ref_clip_score", float(found_N.mean()), signature)
    return [(first, scores), (second, found_N.tolist())]


def _unlike(joined: Joined, settings: EvaluateSettings, encoder: EmbedSettings) -> str:
    """Return why texts cannot be compared with the stored scores; empty if they can."""
    if not settings.reference_clip:
        return "it was not asked for"
    model_id = embedding.reference(encoder).model_id
    if joined.models == {model_id}:
        return ""
    return (
        f"the captions are scored by {', '.join(sorted(joined.models))}, not by {model_id}: "
        "name that encoder with --model"
    )


def _ref_clip_scores(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[float], encoder: Encoder
) -> NDArray[np.float64]:
    import numpy as np

    parts = []
    for at in range(0, len(rows), _BLOCK):
        part = rows[at : at + _BLOCK]
        captions = [row["caption"] or "" for row in part]
        many = [len(row["reference_captions"]) for row in part]
        flat = [text for row in part for text in row["reference_captions"]]
        text_MD = encoder.encode_texts([*captions, *flat]).numpy()
        reference_MD = np.split(text_MD[len(part) :], np.cumsum(many)[:-1])
        score_N = np.array(scores[at : at + _BLOCK], np.float64)
        parts.append(clipscore.ref_clip_score(score_N, text_MD[: len(part)], reference_MD))
    return np.concatenate(parts)


def _java(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    texts: metrics.TextScores,
    settings: EvaluateSettings,
) -> list[tuple[Figure, _Column]]:
    made: list[tuple[Figure, _Column]] = []
    for metric, run in zip(JAVA_METRICS, (java.meteor, java.spice), strict=True):
        found = java.JavaScore(None, reason="it was not asked for")
        if settings.java:
            found = run(captions, references)
        figure = Figure(metric, found.value, texts.signature(metric), found.reason)
        made.append((figure, found.per_image))
    return made


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[Any] | None]
) -> pa.Table:
    arrays = []
    for column in scorefile.SCHEMA:
        values = columns.get(column.name) if column.name in columns else None
        if column.name in rows[0] and column.name not in columns:
            values = [row[column.name] for row in rows]
        arrays.append(pa.array(values or [None] * len(rows), column.type))
    return pa.Table.from_arrays(arrays, schema=scorefile.SCHEMA)
