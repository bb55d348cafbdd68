"""Real photographs' CLIP embeddings and captions in, the quality of captioners trained on them out.

    make bench-flickr8k
    python -m bench.flickr8k FOLDER [--work build/flickr8k] [--seeds 3] [--recipes mlp,best]

The last 150 photographs of `order.txt` are held out. A GPT-2 of three layers learns to write from
the training captions alone, once; each recipe trains a captioner with it, once for each seed.
`shuffled` is `mlp` with every photograph's captions given to another: what can be had from knowing
how captions sound. `from texts` is first taught by texts without photographs, for which a linear
text encoder (`bench/text_tower.py`) finds embeddings; `re-ranked` takes of ten beams the caption
that this encoder finds nearest to the photograph; `best` does both. What was made is kept in the
work folder, and a run that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from bench import flickr8k_data
from bench.flickr8k_data import STOP, UNKNOWN, Photographs
from bench.text_tower import TextTower
from clipcap import captioner as captioners
from clipcap import metrics, trainer
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.progress import Hooks, Progress
from clipcap.settings import digest
from clipcap.training import TrainSettings

PREFIX, DIM, LONGEST = 10, 512, 30
TOGETHER = 8  # texts without a photograph that are read behind one prefix
SHAPE: dict[str, JsonValue] = {
    "n_positions": 64, "n_embd": 192, "n_layer": 3, "n_head": 4,
    "bos_token_id": None, "eos_token_id": None, "attn_pdrop": 0.0,
}  # fmt: skip
FIGURES = ("cider_d", "bleu_4", "clipscore")


@dataclass(frozen=True)
class Recipe:
    """How a captioner is made and how it chooses."""

    mapper: str = "mlp"
    mapper_settings: dict[str, Any] = field(default_factory=dict)
    dropout: float = 0.0
    """Of the language model."""
    is_shuffled: bool = False
    from_texts: bool = False
    """Whether it first learns from texts that stand for photographs."""
    beam_size: int = 5
    is_reranked: bool = False
    loop: dict[str, Any] = field(default_factory=dict)


PLAIN: dict[str, Any] = {"epochs": 3, "learning_rate": 3e-4}
REGULAR: dict[str, Any] = {
    "mapper_settings": {"dropout": 0.3},
    "dropout": 0.1,
    "loop": {"epochs": 6, "learning_rate": 1.5e-4, "embedding_noise": 0.01},
}
RERANKED: dict[str, Any] = {"beam_size": 10, "is_reranked": True}
RECIPES = {
    "shuffled": Recipe(is_shuffled=True, loop=PLAIN),
    "mlp": Recipe(loop=PLAIN),
    "transformer": Recipe(mapper="transformer", loop=PLAIN),
    "linear": Recipe(mapper="linear", loop=PLAIN),
    "mlp, re-ranked": Recipe(loop=PLAIN, **RERANKED),
    "mlp, regularised": Recipe(**REGULAR),
    "mlp, from texts": Recipe(**REGULAR, from_texts=True),
    "best": Recipe(**REGULAR, from_texts=True, **RERANKED),
}


@dataclass
class Bench:
    """What all recipes share."""

    work: Path
    training: Photographs
    held_out: Photographs
    texts: list[str]
    tokenizer: Any
    tower: TextTower
    judge: TextTower
    """One that has seen the held-out photographs, too: it scores, and chooses nothing."""


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/flickr8k"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default=";".join(RECIPES), help="divided by semicolons")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    bench = begin(chosen.folder, chosen.work)
    print("| recipe | CIDEr-D | BLEU-4 | CLIPScore, stand-in |")
    print("| --- | --- | --- | --- |")
    for name in chosen.recipes.split(";"):
        found = [measured(bench, name, seed) for seed in range(chosen.seeds)]
        cells = [spread([one[figure] for one in found]) for figure in FIGURES]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def begin(folder: Path, work: Path) -> Bench:
    """Read the data."""
    training, held_out, texts = flickr8k_data.read(folder)
    known = [text for caption in training.captions for text in caption]
    tower = TextTower(training.embedding_ND.double().numpy(), training.captions)
    judge = TextTower(
        torch.cat((training.embedding_ND, held_out.embedding_ND)).double().numpy(),
        training.captions
        + [[flickr8k_data.plain(text) for text in caption] for caption in held_out.captions],
    )
    tokenizer = flickr8k_data.tokenizer(texts + known)
    return Bench(work, training, held_out, texts, tokenizer, tower, judge)


def measured(bench: Bench, name: str, seed: int) -> dict[str, float]:
    """Return the figures of a recipe and a seed, computed once."""
    recipe = RECIPES[name]
    kept = bench.work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    known = asdict(recipe) | {"seed": seed}
    if kept.exists() and (was := json.loads(kept.read_text()))["recipe"] == known:
        figures: dict[str, float] = was["figures"]
        return figures
    captioner = trained(bench, recipe, seed)
    texts = captions(bench, captioner, recipe)
    scores = metrics.score(texts, bench.held_out.captions).figures
    nearness_N = bench.judge.cosine(bench.held_out.embedding_ND.double().numpy(), texts)
    figures = {
        "cider_d": scores["cider_d"] or 0.0,
        "bleu_4": scores["bleu_4"] or 0.0,
        "clipscore": float(2.5 * np.maximum(nearness_N, 0).mean()),
    }
    kept.write_text(json.dumps({"recipe": known, "figures": figures, "captions": texts}, indent=1))
    return figures


def spread(values: list[float]) -> str:
    """Return mean and standard deviation over the seeds."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.3f} ± {deviation:.3f}"


def trained(bench: Bench, recipe: Recipe, seed: int) -> Captioner:
    """Return a captioner that a recipe has made; recipes that only choose otherwise share it."""
    captioner = new(bench, recipe, seed, language_model(bench, recipe.dropout))
    parts = nn.ModuleList((captioner.mapper, captioner.language_model))
    how = asdict(replace(recipe, beam_size=5, is_reranked=False)) | {"seed": seed}
    kept = bench.work / f"captioner-{digest(how)[:16]}.pt"
    if kept.exists():
        parts.load_state_dict(torch.load(kept, weights_only=True))
        return captioner
    if recipe.from_texts:
        teach_by_texts(bench, captioner, seed)
    embedding_ND = bench.training.embedding_ND
    if recipe.is_shuffled:
        generator = torch.Generator().manual_seed(seed)
        embedding_ND = embedding_ND[torch.randperm(len(embedding_ND), generator=generator)]
    settings = TrainSettings(
        max_tokens=LONGEST, validation_share=0.1, validations=12, seed=seed, **recipe.loop
    )
    trainer.train(embedding_ND, bench.training.captions, captioner, settings)
    save(parts, kept)
    return captioner


def save(module: nn.Module, path: Path) -> None:
    """Write weights, whole or not at all."""
    torch.save(module.state_dict(), path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def new(bench: Bench, recipe: Recipe, seed: int, model: Any) -> Captioner:  # noqa: ANN401 - transformers' own types are dynamic
    """Return an untrained captioner."""
    card = Card(
        captioner_id="flickr8k",
        encoder=EncoderFit(model_id="ViT-B-32", dim=DIM),
        prefix_length=PREFIX,
        mapper=Choice(name=recipe.mapper, settings=recipe.mapper_settings),
    )
    return captioners.new(card, model, bench.tokenizer, seed=seed)


def teach_by_texts(bench: Bench, captioner: Captioner, seed: int) -> None:
    """Train on texts, each with the embedding of a photograph that it might be of."""
    embedding_ND = torch.from_numpy(bench.tower.stand_ins(bench.texts, seed=seed)).float()
    settings = TrainSettings(
        epochs=3, batch_size=80, learning_rate=5e-4, max_tokens=LONGEST, validation_share=0.02,
        validations=3, seed=seed,
    )  # fmt: skip
    texts = [[text] for text in bench.texts]
    trainer.train(functional.normalize(embedding_ND), texts, captioner, settings)


def language_model(bench: Bench, dropout: float) -> Any:  # noqa: ANN401 - transformers' own types are dynamic
    """Return the language model that has read the training captions, made once.

    It learns behind the prefix of a photograph that is always the same.
    """
    shape = SHAPE | {
        "vocab_size": len(bench.tokenizer), "resid_pdrop": dropout, "embd_pdrop": dropout,
    }  # fmt: skip
    kept = bench.work / "language_model.pt"
    if not kept.exists():
        dropped: dict[str, JsonValue] = {"resid_pdrop": 0.1, "embd_pdrop": 0.1}
        model = captioners.random_language_model("gpt2", shape | dropped, seed=0)
        texts = bench.texts + [text for one in bench.training.captions for text in one]
        together = [texts[at : at + TOGETHER] for at in range(0, len(texts), TOGETHER)]
        captioner = new(bench, Recipe(mapper="linear"), 0, model)
        settings = TrainSettings(
            epochs=8, batch_size=200, learning_rate=2e-3, weight_decay=0.05, max_tokens=LONGEST,
            validation_share=0.03,
        )  # fmt: skip
        no_photograph_ND = torch.zeros(len(together), DIM)
        trainer.train(no_photograph_ND, together, captioner, settings, hooks=Hooks(on_progress=say))
        save(model, kept)
    model = captioners.random_language_model("gpt2", shape, seed=0)
    model.load_state_dict(torch.load(kept, weights_only=True))
    return model


def say(now: Progress) -> None:
    """Tell how the language model learns."""
    if now.validation_loss is not None:
        print(f"language model, step {now.step} of {now.steps}: {now.validation_loss:.3f}")


def captions(bench: Bench, captioner: Captioner, recipe: Recipe) -> list[str]:
    """Return a caption of each photograph that is held out."""
    embedding_ND = bench.held_out.embedding_ND
    decode = Choice(
        name="beam",
        settings={"max_tokens": LONGEST, "beam_size": recipe.beam_size},
    )
    found = captioner.caption(embedding_ND, decode=decode)
    choose = nearest(bench.tower) if recipe.is_reranked else likeliest
    return [choose(row, image_D) for row, image_D in zip(found, embedding_ND, strict=True)]


def likeliest(found: list[Candidate], _image_D: Tensor) -> str:
    """Return the caption that the language model finds likeliest."""
    return text(found[0])


def nearest(tower: TextTower) -> Callable[[list[Candidate], Tensor], str]:
    """Return what chooses the caption nearest to the photograph."""

    def choose(found: list[Candidate], image_D: Tensor) -> str:
        texts = [text(one) for one in found]
        image_ND = np.repeat(image_D[None].double().numpy(), len(texts), axis=0)
        return texts[int(tower.cosine(image_ND, texts).argmax())]

    return choose


def text(found: Candidate) -> str:
    """Return the words of a caption."""
    return found.text.replace(UNKNOWN, "").strip(f" {STOP}")


if __name__ == "__main__":
    main()
