"""Real embeddings and captions in, how often the right caption is chosen among others out.

    python -m bench.calibration ../shared/data/flickr8k FOLDER

A GPT-2 of three layers, 192 wide, learns first from 25,020 captions of other photographs, then
behind an MLP mapper from the 681 photographs before the last 150 of `order.txt`: five CPU minutes.
For each of those 150 the likelihoods of captions that people wrote for them, one of each photograph
(the first, then the second): how often the photograph's own is chosen among 20 drawn ones and among
all 150, and minus the log of the probability that it gets among the 150. `sum` and `mean` are log p
of a caption and of a token; the others are `sum` less log p(caption): of a prefix that is the mean
of all, of no image (an embedding of zeros, as in the learning from text), and of so many typical
images, as `clipcap choose --typical` does. CLIP's text side is not there to compare with.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clipcap import captioner as captioners
from clipcap import likelihood, trainer
from clipcap.captioner import Captioner
from clipcap.cards import Card, EncoderFit
from clipcap.training import TrainSettings
from clipcap.tries import Tokens

HELD_OUT, WORDS, DIM, DRAWS, AMONG = 150, 4_000, 512, 10, 20
SHAPE: Final = {
    "n_positions": 96, "n_embd": 192, "n_layer": 3, "n_head": 4,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
Floats = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    """Read the command line, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("captioner", type=Path, help="where the trained one is kept")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    order = (chosen.folder / "order.txt").read_text().split()
    loaded = torch.from_numpy(np.load(chosen.folder / "clip_vit_b32_openai.npy")).float()
    unit = torch.nn.functional.normalize(loaded)
    said = captions(chosen.folder / "captions.tsv")
    others = (chosen.folder / "captions_text_only.txt").read_text().lower().splitlines()
    others = [text for text in others if text.strip()]
    known = [said[name] for name in order[:-HELD_OUT]]
    if not (chosen.captioner / "captioner.json").is_file():
        trained(others, known, unit[:-HELD_OUT]).save(str(chosen.captioner))
    captioner = captioners.load(str(chosen.captioner)).for_captions("fp32")
    print("| | of 20 | of 150 | -log p, nats |\n| --- | --- | --- | --- |")
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for place in range(2):
        texts = [said[name][place] for name in order[-HELD_OUT:]]
        for name, evidence in ways(captioner, unit, texts).items():
            rows[name].append(judged(evidence))
    for name, found in rows.items():
        first, second, third = np.mean(found, axis=0)
        print(f"| {name} | {100 * first:.0f} % | {100 * second:.0f} % | {third:.2f} |")


def captions(file: Path) -> dict[str, list[str]]:
    """Return the captions of each photograph."""
    found = defaultdict(list)
    with file.open() as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            found[row["file"]].append(row["caption"].lower())
    return found


def untrained(texts: list[str]) -> Captioner:
    """Return a random captioner that knows the most frequent words of some texts."""
    split = pre_tokenizers.Whitespace()
    counted = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    words = {word: n for n, word in enumerate(["<unk>", *dict(counted.most_common(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.normalizer = split, normalizers.Lowercase()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    shape = {"vocab_size": len(words), **SHAPE}
    fit = EncoderFit(model_id="ViT-B-32-openai", dim=DIM)
    card = Card(captioner_id="flickr8k-small", encoder=fit)
    model = captioners.random_language_model("gpt2", shape, seed=0)
    return captioners.new(card, model, wrapped, seed=0)


def trained(others: list[str], known: list[list[str]], unit: torch.Tensor) -> Captioner:
    """Return a captioner that learnt from texts alone, then from photographs."""
    captioner = untrained([*others, *(text for texts in known for text in texts)])
    fives = [others[at : at + 5] for at in range(0, len(others) // 5 * 5, 5)]
    speech = TrainSettings(
        epochs=2, batch_size=60, learning_rate=1e-3, validation_share=0.02, validations=2
    )
    sight = TrainSettings(
        epochs=20, batch_size=60, learning_rate=4e-4, validation_share=0.06, embedding_noise=0.01
    )
    for settings, embedding, texts in (
        (speech, torch.zeros(len(fives), DIM), fives),
        (sight, unit, known),
    ):
        done = trainer.train(embedding, texts, captioner, settings)
        print(f"held-out loss {done.validation_loss:.3f}, best at step {done.best_step}")
    return captioner


def ways(captioner: Captioner, unit: torch.Tensor, texts: list[str]) -> dict[str, Floats]:
    """Return for each way what speaks for each photograph (rows) and caption."""
    tokens = likelihood.tokenised(captioner, texts)
    known = unit[:-HELD_OUT]
    shuffled = np.random.default_rng(0).permutation(len(known))
    with torch.inference_mode():
        mean = captioner.prefix(known).mean(0, keepdim=True)
        none = captioner.prefix(torch.zeros(1, DIM))
        usual = captioner.prefix(known[shuffled[:128]])
        sums = read(captioner, captioner.prefix(unit[-HELD_OUT:]), tokens)
    found = {"sum": sums, "mean": sums / [len(ids) for ids in tokens]}
    found["less the mean prefix's"] = sums - read(captioner, mean, tokens)
    found["less no image's"] = sums - read(captioner, none, tokens)
    typical = read(captioner, usual, tokens)
    for count in (8, 32, 128):
        prior = np.logaddexp.reduce(typical[:count], axis=0) - np.log(count)
        found[f"less {count} images'"] = sums - prior
    return found


def read(captioner: Captioner, prefix: torch.Tensor, tokens: list[Tokens]) -> Floats:
    """Return log p of each caption behind each prefix."""
    found = likelihood.of_prefixes(captioner, prefix, [tokens] * len(prefix))
    return np.stack([one.sum_C for one in found])


def judged(evidence: Floats) -> tuple[float, float, float]:
    """Return how often the diagonal is the largest among drawn ones and all; minus its log p."""
    count = len(evidence)
    hits = []
    for row in range(count):
        drawing = np.random.default_rng(row)
        others = np.delete(np.arange(count), row)
        for _ in range(DRAWS):
            drawn = drawing.choice(others, AMONG - 1, replace=False)
            hits.append(evidence[row, row] > evidence[row, drawn].max())
    log_p = np.diag(evidence) - np.logaddexp.reduce(evidence, axis=1)
    whole = evidence.argmax(1) == np.arange(count)
    return float(np.mean(hits)), float(whole.mean()), float(-log_p.mean())


if __name__ == "__main__":
    main()
