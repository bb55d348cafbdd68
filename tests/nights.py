"""Tiny models and a folder of drawings in, whole nights of every stage out, for tests of stages."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from clipcap import embedding, manifest, storage
from clipcap.cards import EncoderFit
from clipcap.embedding import EmbedSettings, Speed
from clipcap.labels import bank
from clipcap.layout import Run, Shard
from clipcap.outcomes import Night, Outcome
from clipcap.planning import PackSettings
from clipcap.plans import Plan
from clipcap.stages import caption, embed, label, publish, shard
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.label import LabelSettings
from clipcap.stages.publish import Published, PublishSettings
from clipcap.stages.shard import ShardSettings
from tests.captioners import tiny_captioner
from tests.models import make_tiny_clip

LABELS = 'names = ["cat", "dog", "house"]\ntemplates = ["a photo of a {}.", "a picture of a {}."]\n'


PUBLISH = PublishSettings()


@dataclass(frozen=True)
class Tiny:
    """Folders of tiny models that fit each other, and a label set."""

    encoder: EmbedSettings
    captioner: CaptionSettings
    label_set: str


def make_tiny(
    folder: Path, seed: int = 0, make: Callable[[Path, int], object] = make_tiny_clip
) -> Tiny:
    """Write a random CLIP of D = 16, a captioner that reads its embeddings, and a label set."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = _made(folder / f"clip-{seed}")
    make(clip, seed)
    encoder = EmbedSettings(model=str(clip))
    ref = embedding.reference(encoder)
    captioner = tiny_captioner(seed, stop_bonus=1.0)
    fit = EncoderFit(
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )
    captioner.card = captioner.card.model_copy(update={"encoder": fit})
    captioner.save(str(folder / f"captioner-{seed}"))
    (folder / "pets.toml").write_text(LABELS)
    chosen = CaptionSettings(captioner=str(folder / f"captioner-{seed}"))
    return Tiny(encoder, chosen, str(folder / "pets.toml"))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> None:
    """Write a drawing that differs with `seed`; the ending says the format."""
    image = Image.new("RGB", size, (seed * 53 % 256, seed * 97 % 256, seed * 151 % 256))
    pen = ImageDraw.Draw(image)
    pen.ellipse((4, 4, 8 + seed * 7 % 40, 30), fill=(255 - seed * 11 % 256, 40, 90))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def things(folder: Path, tiny: Tiny, images: int) -> Path:
    """Make an output of so many drawings, each of which came with a caption."""
    for n in range(images):
        draw(folder / "in" / f"{n}.png", n)
        (folder / "in" / f"{n}.txt").write_text(f"a thing {n}.")
    night(folder / "in", folder / "out", tiny)
    return folder / "out"


def night(
    source: str | Path,
    out: str | Path,
    tiny: Tiny,
    *,
    dt: str = "2026-11-20",
    max_images: int = 4,
    settings: PublishSettings = PUBLISH,
) -> tuple[Night, Published]:
    """Run every stage once, in the order of the nightly flow."""
    run = Run(f"run-{secrets.token_hex(4)}", storage.canonical(str(out)), dt)
    packed = ShardSettings(pack=PackSettings(max_images=max_images))
    started = time.time()
    plan = shard.plan(str(source), run=run, settings=packed)
    outcomes = [shard.shard(part.shard, run=run, settings=packed) for part in plan.planned]
    outcomes += [shard.retire(target, run=run) for target in plan.retired]
    for target in plan.first(manifest.shards(run.out)):
        outcomes += over(target, run, tiny)
    done = Night(run, "nightly", "test", started, "{}", plan, tuple(outcomes))
    return done, publish.publish(done, settings=settings)


def shard_night(source: str, out: str, settings: ShardSettings, *, dt: str = "2026-11-20") -> Plan:
    """Run the shard stage once, as the nightly flow does."""
    run = Run(secrets.token_hex(4), out, dt)
    return sharded(shard.plan(source, run=run, settings=settings), run, settings)


def sharded(plan: Plan, run: Run, settings: ShardSettings) -> Plan:
    """Do what was planned."""
    for part in plan.planned:
        shard.shard(part.shard, run=run, settings=settings)
    for target in plan.retired:
        shard.retire(target, run=run)
    return plan


def over(target: Shard, run: Run, tiny: Tiny) -> list[Outcome]:
    """Embed, caption and label one shard."""
    return [
        *embed.embed([target], run=run, settings=tiny.encoder, speed=Speed(batch_size=3)),
        caption.caption(
            target,
            run=run,
            settings=tiny.captioner,
            encoder=tiny.encoder,
            speed=CaptionSpeed(batch_size=3),
        ),
        *label.label(
            target,
            [bank.load(tiny.label_set)],
            run=run,
            settings=LabelSettings(label_sets=(tiny.label_set,), top_k=2),
            encoder=tiny.encoder,
        ),
    ]
