"""The Flickr8k folder in, images' embeddings, captions and a small language model's words out.

The folder: `order.txt`, `captions.tsv` (file, number, caption), `clip_vit_b32_openai.npy` and
`captions_text_only.txt`, which are captions of other photographs, without them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

HELD_OUT = 150
STOP, UNKNOWN = ".", "<unk>"
OFTEN = 4  # a word is known if it was read so many times


@dataclass(frozen=True)
class Photographs:
    """Some photographs: unit embeddings, and what people wrote of each."""

    embedding_ND: Tensor
    captions: list[list[str]]


def read(folder: Path) -> tuple[Photographs, Photographs, list[str]]:
    """Return the photographs to learn from, those held out, and the texts without photographs.

    The captions to learn from are lower case without punctuation; those held out are untouched.
    """
    order = (folder / "order.txt").read_text().split()
    whole = torch.from_numpy(np.load(folder / "clip_vit_b32_openai.npy").astype(np.float32))
    embedding_ND = functional.normalize(whole)
    written: dict[str, list[str]] = {name: [] for name in order}
    with (folder / "captions.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            written[row["file"]].append(row["caption"])
    cut = len(order) - HELD_OUT
    learnt = [[plain(text) for text in written[name]] for name in order[:cut]]
    held_out = [written[name] for name in order[cut:]]
    texts = (folder / "captions_text_only.txt").read_text().splitlines()
    return (
        Photographs(embedding_ND[:cut], learnt),
        Photographs(embedding_ND[cut:], held_out),
        [plain(text) for text in texts if text.strip()],
    )


def plain(text: str) -> str:
    """Return the words of a caption, in lower case."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the whole words that are read often."""
    count = Counter(word for text in texts for word in text.split())
    words = [STOP, UNKNOWN, *(word for word, times in count.most_common() if times >= OFTEN)]
    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=UNKNOWN)
