"""A shape in, a random checkpoint of the original ClipCap out, by the original's own modules.

Written from `train.py` and `predict.py` of rmokady/CLIP_prefix_caption and from GPT-2's
description, without anything of the library: what loads here strictly, loads there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

END = "<|endoftext|>"
WORDS = 257


@dataclass(frozen=True)
class Size:
    """A small model of the true form, for the bundled CLIP; GPT-2's heads are 64 wide."""

    mapper: str = "mlp"
    dim_clip: int = 128
    prefix_length: int = 3
    clip_length: int = 4
    mapper_layers: int = 2
    dim_lm: int = 64
    layers: int = 2
    positions: int = 96
    words: int = WORDS
    buffers: bool = False


class Affine(nn.Module):
    """GPT-2's `Conv1D`: a linear layer whose weight is `[in, out]`."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out) * 0.05)
        self.bias = nn.Parameter(torch.randn(dim_out) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal attention, heads of 64."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.dim_lm // 64
        self.c_attn = Affine(size.dim_lm, 3 * size.dim_lm)
        self.c_proj = Affine(size.dim_lm, size.dim_lm)
        if size.buffers:
            mask = torch.tril(torch.ones(size.positions, size.positions, dtype=torch.uint8))
            self.register_buffer("bias", mask[None, None])
            self.register_buffer("masked_bias", torch.tensor(-1e4))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, dim = x.shape
        parts = self.c_attn(x).view(rows, tokens, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        score = query @ key.transpose(2, 3) / 8
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        weight = score.masked_fill(later, -torch.inf).softmax(-1)
        out: Tensor = self.c_proj((weight @ value).transpose(1, 2).reshape(rows, tokens, dim))
        return out


class Hidden(nn.Module):
    """Four times as wide, with GPT-2's GELU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.c_fc = Affine(size.dim_lm, 4 * size.dim_lm)
        self.c_proj = Affine(4 * size.dim_lm, size.dim_lm)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(nn.functional.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One layer of GPT-2."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.dim_lm)
        self.attn = Attention(size)
        self.ln_2 = nn.LayerNorm(size.dim_lm)
        self.mlp = Hidden(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Stack(nn.Module):
    """`gpt.transformer`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.wte = nn.Embedding(size.words, size.dim_lm)
        self.wpe = nn.Embedding(size.positions, size.dim_lm)
        self.h = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.dim_lm)


class Gpt2(nn.Module):
    """`gpt`: the head is tied to the words."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.transformer = Stack(size)
        self.lm_head = nn.Linear(size.dim_lm, size.words, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.transformer.wpe.weight[: x.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        out: Tensor = self.lm_head(self.transformer.ln_f(x))
        return out


class Mlp(nn.Module):
    """`MLP` of train.py."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2])
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class MapperAttention(nn.Module):
    """`MultiHeadAttention` of train.py."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, dim * 2, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, dim = x.shape
        query = self.to_queries(x).reshape(rows, tokens, 8, dim // 8)
        both = self.to_keys_values(x).reshape(rows, tokens, 2, 8, dim // 8)
        score = torch.einsum("bnhd,bmhd->bnmh", query, both[:, :, 0]) * (dim // 8) ** -0.5
        out = torch.einsum("bnmh,bmhd->bnhd", score.softmax(2), both[:, :, 1])
        found: Tensor = self.project(out.reshape(rows, tokens, dim))
        return found


class MapperHidden(nn.Module):
    """`MlpTransformer` of train.py."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(x).relu())
        return out


class MapperLayer(nn.Module):
    """`TransformerLayer` of train.py."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MapperAttention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MapperHidden(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class MapperStack(nn.Module):
    """`Transformer` of train.py."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MapperLayer(dim) for _ in range(layers))


class TransformerMapper(nn.Module):
    """`TransformerMapper` of train.py."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.transformer = MapperStack(size.dim_lm, size.mapper_layers)
        self.linear = nn.Linear(size.dim_clip, size.clip_length * size.dim_lm)
        self.prefix_const = nn.Parameter(torch.randn(size.prefix_length, size.dim_lm))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).view(x.shape[0], self.size.clip_length, -1)
        prefix = self.prefix_const.unsqueeze(0).expand(x.shape[0], *self.prefix_const.shape)
        x = torch.cat((x, prefix), 1)
        for layer in self.transformer.layers:
            x = layer(x)
        return x[:, self.size.clip_length :]


class ClipCaptionModel(nn.Module):
    """The original's model; its mapper is `mlp`, `transformer` or the `linear` of predict.py."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.gpt = Gpt2(size)
        dim_out = size.dim_lm * size.prefix_length
        self.clip_project: nn.Module
        if size.mapper == "transformer":
            self.clip_project = TransformerMapper(size)
        elif size.mapper == "linear":
            self.clip_project = nn.Linear(size.dim_clip, dim_out)
        else:
            self.clip_project = Mlp((size.dim_clip, dim_out // 2, dim_out))

    def prefix(self, embedding_BD: Tensor) -> Tensor:
        """Return `prefix_BPE`."""
        size = self.size
        found: Tensor = self.clip_project(embedding_BD)
        return found.view(-1, size.prefix_length, size.dim_lm)


def model(size: Size, seed: int = 0) -> ClipCaptionModel:
    """Return a random one; norms are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ClipCaptionModel(size)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return made.eval()


def state(size: Size, seed: int = 0) -> dict[str, Any]:
    """Return its state dict, as train.py saves it."""
    return model(size, seed).state_dict()


def words_folder(folder: Path, words: int = WORDS) -> str:
    """Write GPT-2's form of a vocabulary: all bytes, words nobody uses, and the end token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    texts = [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]
    texts += [f"<unused{place}>" for place in range(words - len(texts) - 1)]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {text: place for place, text in enumerate([*texts, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return str(folder)
