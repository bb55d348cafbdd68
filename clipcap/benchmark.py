"""Images in, how fast each stage takes them and what the model waits for out; a folder is filled.

The bounds are measured with the same images: decoding with no model behind it, the model with no
decoding before it. What the embed stage reaches of the lower one is all that is left to gain.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from clipcap import embedding, layout, manifest, photographs, storage, tables
from clipcap.embedder import Embedder
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.feed import Feed, Part
from clipcap.labels import bank
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome
from clipcap.preprocessing import Preprocess
from clipcap.stages import caption, embed, label, shard
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings

_WARM: Final = 8  # images of the first night, which loads the models and starts the workers
_FORWARD_S: Final = 3.0  # how long the model alone is measured
_WAITS: Final = 0.1  # share of the time from which on a wait is worth a setting
_NEAR: Final = 0.8  # of the model's own bound: it is the limit

Stage = Literal["plan", "shard", "decode alone", "model alone", "embed", "caption", "label"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is measured: the settings of a night."""

    shard: ShardSettings
    embed: EmbedSettings
    speed: Speed
    caption: CaptionSettings | None
    caption_speed: CaptionSpeed
    label: LabelSettings


@dataclass(frozen=True, slots=True)
class Figure:
    """A stage over all images; of its seconds, those inside the model, and waiting for images."""

    stage: Stage
    images: int
    seconds: float
    model_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    rejected: int = 0

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / max(self.seconds, 1e-9)


def draw(folder: Path, count: int, *, megapixels: float) -> None:
    """Write made-up photographs, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(photographs.sizes(count, megapixels=megapixels, seed=0)):
        picture = photographs.photograph(np.random.default_rng((0, number)), size)
        (folder / f"{number:06}.jpg").write_bytes(photographs.jpeg(picture))


def measured(source: str, place: str, chosen: Chosen) -> Iterator[Figure]:
    """Yield a figure for every stage and bound, measured in a night that begins with nothing.

    Args:
        source: URL of images.
        place: URL of an empty folder for the outputs.
        chosen: the settings; the limit is that of the night's images.
    """
    few = chosen.shard.model_copy(update={"limit": _WARM})
    list(_night(source, f"{place}/warm", replace(chosen, shard=few)))
    yield from _night(source, f"{place}/night", chosen)


def _night(source: str, out: str, chosen: Chosen) -> Iterator[Figure]:
    run = Run(f"bench-{secrets.token_hex(4)}", storage.canonical(out), "2000-01-01")
    began = time.perf_counter()
    plan = shard.plan(source, run=run, settings=chosen.shard)
    yield Figure("plan", plan.listed, time.perf_counter() - began)
    targets = [part.shard for part in plan.planned]
    taken = _timed(
        "shard", lambda: [shard.shard(t, run=run, settings=chosen.shard) for t in targets]
    )
    if not taken.images:
        raise SettingsError(
            f"There must be images to measure with, but none of the {taken.rejected} files of "
            f"{source} that were looked at can be read as one."
        )
    yield taken
    targets = manifest.shards(run.out)  # some are named by what was read
    yield _decoded(targets, run, chosen)
    yield _forward(sum(part.images for part in plan.planned), chosen)
    yield _timed(
        "embed",
        lambda: embed.embed(targets, run=run, settings=chosen.embed, speed=chosen.speed),
    )
    if chosen.caption is not None:
        settings = chosen.caption
        yield _timed("caption", lambda: [_captioned(t, run, settings, chosen) for t in targets])
    if chosen.label.label_sets:
        yield _timed("label", lambda: [one for t in targets for one in _labelled(t, run, chosen)])


def _timed(stage: Stage, work: Callable[[], Sequence[Outcome]]) -> Figure:
    began = time.perf_counter()
    outcomes = work()
    return Figure(
        stage,
        sum(one.computed for one in outcomes),
        time.perf_counter() - began,
        model_s=sum(one.model_s for one in outcomes),
        read_s=sum(one.read_s for one in outcomes),
        decode_s=sum(one.decode_s for one in outcomes),
        rejected=sum(one.rejected for one in outcomes),
    )


def _decoded(targets: Iterable[Shard], run: Run, chosen: Chosen) -> Figure:
    """Decode everything for the model, and throw it away."""
    parts = []
    for target in targets:
        live = tables.read(layout.manifest(run.out, target))
        tar = manifest.tar_url(run.out, target, tables.metadata(live))
        parts.append(Part(target, tar, live))
    wanted = Preprocess.of(embedding.reference(chosen.embed).preprocess)
    size = chosen.speed.batch_size or 64
    feed: Feed[Shard] = Feed(wanted, chosen.embed.pixels, chosen.speed.decode, batch_size=size)
    with feed:
        began = time.perf_counter()
        images = sum(len(batch.errors) for batch in feed.batches(parts))
        return Figure("decode alone", images, time.perf_counter() - began)


def _forward(images: int, chosen: Chosen) -> Figure:
    """Run the model over pixels that are there."""
    import torch  # noqa: PLC0415 - reading the settings here must not load it

    embedder: Embedder[Shard] = Embedder(chosen.embed, chosen.speed, run_id="bench", images=images)
    wanted = Preprocess.of(embedding.reference(chosen.embed).preprocess)
    batch = torch.zeros(embedder.batch_size, wanted.height, wanted.width, 3, dtype=torch.uint8)
    embedder.encoder.encode_pixels(batch)()
    done, began = 0, time.perf_counter()
    while not done or time.perf_counter() - began < _FORWARD_S:
        embedder.encoder.encode_pixels(batch)()
        done += len(batch)
    seconds = time.perf_counter() - began
    return Figure("model alone", done, seconds, model_s=seconds)


def _captioned(target: Shard, run: Run, settings: CaptionSettings, chosen: Chosen) -> Outcome:
    return caption.caption(
        target, run=run, settings=settings, encoder=chosen.embed, speed=chosen.caption_speed
    )


def _labelled(target: Shard, run: Run, chosen: Chosen) -> list[Outcome]:
    given = [bank.load(name) for name in chosen.label.label_sets]
    return label.label(target, given, run=run, settings=chosen.label, encoder=chosen.embed)


def advice(figures: Iterable[Figure], chosen: Chosen) -> list[str]:
    """Return what limits the embed stage, and the setting to change."""
    by_stage = {figure.stage: figure for figure in figures}
    found, decode, model = (by_stage[name] for name in ("embed", "decode alone", "model alone"))
    bound = min(decode.rate, model.rate)
    texts = []
    if found.read_s > _WAITS * found.seconds:
        texts.append(
            f"The model waited {found.read_s / found.seconds:.0%} of the time until tars were "
            "read: raise speed.prefetch, or run nearer to the bucket."
        )
    if found.decode_s > _WAITS * found.seconds:
        texts.append(
            f"The model waited {found.decode_s / found.seconds:.0%} of the time for decoding, by "
            f"{chosen.speed.decode.count} processes: more cores (and speed.decode.processes), "
            "smaller images in the tars (shard.resize_px), or embed.pixels.scaled."
        )
    if model.rate < decode.rate and found.rate > _NEAR * bound:
        texts.append(
            f"The model is the limit: {found.rate / model.rate:.0%} of its own speed are reached. "
            "Faster: embed.precision auto, a GPU (--device cuda), a smaller --model."
        )
    if not texts:
        texts.append(
            f"{found.rate / bound:.0%} of the lower bound are reached; on these cores decoding and "
            "the model share the time, and no single setting stands out."
        )
    return texts
