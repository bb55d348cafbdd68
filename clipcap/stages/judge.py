"""Captioners and the images that they are to be judged on in, a score file of each out.

Captions that the output has by them count as they are; the others are found here, and not kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from clipcap import embedding, layout, review, tables
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import NotFoundError, SettingsError
from clipcap.layout import Run, Shard
from clipcap.metrics import joining, scorefile
from clipcap.metrics.joining import Joined, References
from clipcap.models import EncoderRef
from clipcap.stages import caption, evaluate
from clipcap.stages.caption import CaptionSettings, CaptionSpeed, Chosen
from clipcap.stages.evaluate import EvaluateSettings

log = logging.getLogger(__name__)

_IDENTITY: Final = ["image_id", "content_sha256"]

Wanted = Mapping[Shard, Sequence[Mapping[str, Any]]]
"""By shard the images that are judged, with what people wrote for them."""


@dataclass(frozen=True, slots=True)
class Side:
    """A captioner, and the encoder that it is judged with."""

    chosen: Chosen
    encoder: EmbedSettings
    ref: EncoderRef


@dataclass(frozen=True, slots=True)
class Judging:
    """What both captioners are judged on, and by."""

    out: str
    wanted: Wanted
    measure: str
    """The metric that must be there."""
    speed: CaptionSpeed


def side(folder: str, encoder: EmbedSettings, settings: CaptionSettings) -> Side:
    """Return a captioner that shall be judged, sure that it fits the encoder.

    Args:
        folder: the captioner.
        encoder: whose embeddings it reads.
        settings: how it finds captions; its `captioner` is not looked at.

    Raises:
        SettingsError: it is no captioner, or reads embeddings of another encoder.
    """
    wanted = settings.model_copy(update={"captioner": folder})
    return Side(caption.choose(wanted, encoder), encoder, embedding.reference(encoder))


def wanted(out: str, sides: Sequence[Side], references: References | None) -> Wanted:
    """Return the images that people wrote captions for and that are embedded for every side.

    Args:
        out: the canonical URL of the output.
        sides: the captioners.
        references: what people wrote, by `image_id`; None: the captions that images came with.

    Raises:
        SettingsError: there is no such image.
    """
    refs = {side.ref.model_id: side.ref for side in sides}
    found: dict[Shard, Sequence[Mapping[str, Any]]] = {}
    lacking = 0
    for shard, rows in joining.live(out, references):
        told = [row for row in rows if row["reference_captions"]]
        embedded = [_embedded(out, shard, ref) for ref in refs.values()] if told else []
        there = [row for row in told if all(_identity(row) in one for one in embedded)]
        lacking += len(told) - len(there)
        if there:
            found[shard] = there
    if lacking:
        log.warning("%d images with captions by people are not embedded, and not judged", lacking)
    if not found:
        raise SettingsError(
            f"A captioner is promoted by what people wrote, but no embedded image of {out} has "
            "captions by people. Give a file of them: --references FILE."
        )
    return found


def _embedded(out: str, shard: Shard, ref: EncoderRef) -> set[tuple[str, str]]:
    url = layout.embeddings(out, shard, model_id=ref.model_id)
    try:
        return set(map(_identity, tables.read(url, _IDENTITY).to_pylist()))
    except NotFoundError:
        return set()


def _identity(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["image_id"], row["content_sha256"]


def scores(side: Side, judging: Judging, stored: str, level: int = logging.INFO) -> pa.Table:
    """Return a score file of one side, with its footer; a stored one of the same basis as it is.

    Args:
        side: the captioner.
        judging: what it is judged on.
        stored: URL of a score file that may be of the same basis, or of nothing; may be empty.
        level: how loudly it is told that the stored one is not.

    Raises:
        SettingsError: the embeddings are not those that the captioner reads.
    """
    recipes = {
        shard: caption.recipe(side.chosen, embedding.committed(shard, side.ref, out=judging.out))
        for shard in judging.wanted
    }
    images = (row for rows in judging.wanted.values() for row in rows)
    basis = evaluate.basis(_made_by(side, recipes), images)
    measure = judging.measure
    if stored and (found := _stored(stored, basis, measure, level)) is not None:
        return found
    asked = EvaluateSettings(
        reference_clip=measure == "ref_clip_score", java=measure in evaluate.JAVA_METRICS
    )
    joined = _joined(side, judging, recipes)
    text_side = Speed(device=judging.speed.device)
    done = evaluate.judged(joined, settings=asked, encoder=side.encoder, speed=text_side)
    return done.table.replace_schema_metadata(done.metadata())


def _made_by(side: Side, recipes: Mapping[Shard, str]) -> set[str]:
    return {joining.made_by(recipe, side.chosen.rules.text) for recipe in recipes.values()}


def _stored(url: str, basis: str, measure: str, level: int) -> pa.Table | None:
    try:
        table = scorefile.read(url)
    except SettingsError as error:
        log.log(level, "%s They are found anew.", error)
        return None
    if tables.metadata(table).get("basis") != basis:
        log.log(level, "%s is of other captions or references: they are judged anew.", url)
        return None
    lacks = measure in table.schema.names and table[measure].null_count == table.num_rows
    return None if lacks else table


def _joined(side: Side, judging: Judging, recipes: Mapping[Shard, str]) -> Joined:
    """Return the wanted images beside their captions: the output's where they hold, else new."""
    said: dict[tuple[str, str], Mapping[str, Any]] = {}
    todo = []
    for shard, rows in judging.wanted.items():
        name = side.chosen.card.captioner_id
        url = layout.captions(judging.out, shard, captioner_id=name)
        said |= _standing(url, recipes[shard], side)
        lacking = {_identity(row): row["source_uri"] for row in rows if _identity(row) not in said}
        if lacking:
            todo.append(_to_caption(judging.out, shard, side.ref, lacking))
    if todo:
        table = pa.concat_tables(todo)
        log.info("%s captions %d images", side.chosen.card.captioner_id, table.num_rows)
        run = Run("", judging.out, "")
        made = caption.captioned(
            table, side.chosen, run=run, encoder=side.encoder, speed=judging.speed
        )
        new = tables.from_rows(made.rows, tables.SCHEMAS["captions"])
        said |= _by_image(_judged(new, side))
    joined = Joined(
        models={side.ref.model_id},
        recipes=_made_by(side, recipes),
        captioner_id=side.chosen.card.captioner_id,
    )
    for rows in judging.wanted.values():
        for row in rows:
            joined.rows.append({**row, **said[_identity(row)]})
    joined.rows.sort(key=lambda row: str(row["image_id"]))
    return joined


def _standing(url: str, recipe: str, side: Side) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return the output's captions of a shard, judged as a night would; none if made otherwise."""
    try:
        table = tables.read(url)
    except NotFoundError:
        return {}
    footer = tables.metadata(table)
    if footer.get("recipe") != recipe:
        return {}
    is_judged = footer.get("review", "") == side.chosen.rules.text
    return _by_image(table if is_judged else _judged(table, side))


def _judged(captions: pa.Table, side: Side) -> pa.Table:
    return review.judged(captions, side.chosen.rules, side.chosen.settings.rank_by)


def _by_image(captions: pa.Table) -> dict[tuple[str, str], Mapping[str, Any]]:
    rows = captions.select([*_IDENTITY, "caption", "clip_score"]).to_pylist()
    return {_identity(row): row for row in rows}


def _to_caption(
    out: str, shard: Shard, ref: EncoderRef, lacking: Mapping[tuple[str, str], str]
) -> pa.Table:
    columns = [*_IDENTITY, "key", "embedding", "embedding_norm"]
    table = tables.read(layout.embeddings(out, shard, model_id=ref.model_id), columns)
    uris = [lacking.get(_identity(row)) for row in table.select(_IDENTITY).to_pylist()]
    table = table.replace_schema_metadata(None).append_column(
        "source_uri", pa.array(uris, pa.string())
    )
    return table.filter(table["source_uri"].is_valid())
