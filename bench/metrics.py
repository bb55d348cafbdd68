"""Captions in, a table out: CPU seconds of the metrics beside pycocoevalcap's, and how they differ.

    python -m bench.metrics CAPTIONS.txt [--peer SITE_PACKAGES] [--images 5000] [--repeats 5]

CAPTIONS.txt has a caption a line; five by five they are the references of an image, and a caption
from anywhere is judged by them. `--peer` is where pycocoevalcap is installed; without it only
ours is timed. One process, one thread, medians. The peer is given words that are cut, so its Java
tokenizer is not in its time; ours is.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipcap import metrics
from clipcap.metrics import corpus, ngram_scores, rouge, tokenizer

_EACH = 5
_PARTS = ("bleu", "rouge_l", "cider_d")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    lines = [line for line in chosen.captions.read_text("utf-8").splitlines() if line.strip()]
    images = min(chosen.images, len(lines) // _EACH)
    references = [lines[_EACH * at : _EACH * (at + 1)] for at in range(images)]
    captions = random.Random(0).choices(lines, k=images)
    ours = _ours(captions, references, chosen.repeats)
    print(f"{images:,} images, {_EACH} references each, CPU seconds of one thread")
    print("| | ours | pycocoevalcap | times | largest difference of a caption |")
    print("| --- | --- | --- | --- | --- |")
    peer = _peer(chosen.peer, captions, references, chosen.repeats) if chosen.peer else {}
    found = metrics.score(captions, references)
    values = {"bleu": found.bleu_NK.T, "rouge_l": found.rouge_N, "cider_d": found.cider_N}
    print(f"| words | {ours['words']:.3f} | in Java | | |")
    print(f"| BLEU, CIDEr-D, distinct | {ours['n-grams']:.3f} | | | |")
    print(f"| ROUGE-L | {ours['rouge_l']:.3f} | | | |")
    for name in _PARTS if peer else ():
        seconds, theirs = peer[name]
        away = float(np.abs(values[name] - theirs).max())
        print(f"| {name} of pycocoevalcap | | {seconds:.3f} | | {away:.1e} |")
    whole = sum(seconds for seconds, _ in peer.values())
    times = f"{whole / ours['all']:.1f}" if peer else ""
    print(f"| all | {ours['all']:.3f} | {whole:.3f} | {times} | |")


def _ours(
    captions: Sequence[str], references: Sequence[Sequence[str]], repeats: int
) -> dict[str, float]:
    encoded = corpus.encode(captions, references)

    def words() -> None:
        tokenizer._KNOWN.clear()
        corpus.encode(captions, references)

    def everything() -> None:
        tokenizer._KNOWN.clear()
        metrics.score(captions, references)

    return {
        "words": _seconds(words, repeats),
        "n-grams": _seconds(lambda: ngram_scores.score(encoded), repeats),
        "rouge_l": _seconds(lambda: rouge.rouge_l(encoded), repeats),
        "all": _seconds(everything, repeats),
    }


def _peer(
    folder: Path, captions: Sequence[str], references: Sequence[Sequence[str]], repeats: int
) -> dict[str, tuple[float, Any]]:
    sys.path.append(str(folder))
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    def cut(text: str) -> str:
        return " ".join(tokenizer.tokenize(text))

    said = {at: [cut(text)] for at, text in enumerate(captions)}
    theirs = {at: [cut(text) for text in texts] for at, texts in enumerate(references)}
    runs: dict[str, Callable[[], Any]] = {
        "bleu": lambda: Bleu(4).compute_score(theirs, said, verbose=0)[1],
        "rouge_l": lambda: Rouge().compute_score(theirs, said)[1],
        "cider_d": lambda: Cider().compute_score(theirs, said)[1],
    }
    return {name: (_seconds(run, repeats), np.array(run())) for name, run in runs.items()}


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
