"""Prefixes and fixed candidate texts in, how likely the language model finds each text out.

A prefix is read once; the candidates continue from its cached keys and values, as a tree of tokens
(`clipcap.tries`) or, before a language model that reads no trees, each as a row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from clipcap import registry, tries
from clipcap.captioner import Captioner
from clipcap.cards import choose
from clipcap.errors import SettingsError
from clipcap.tries import Tokens, Trie

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_LOGITS: Final = 1 << 25  # numbers that the head gives at a time: 134 MB of float32
_POSITIONS: Final = 1_024  # that are read at a time at most, where the vocabulary is small
_PREFIXES: Final = 2_048  # positions of prefixes that are read at a time
_FEW, _MANY = 8, 64  # images at a time
_ROWS: Final = 16  # of log-probabilities, of which a processor's cache holds so many
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a language model says of the C candidates of one image."""

    sum_C: Floats
    """log p of all tokens of each candidate, in nats."""
    count_C: NDArray[np.int64]
    """Its tokens, the stop token included where that counts."""

    @property
    def mean_C(self) -> Floats:
        """Mean log p of a token: does not favour short candidates as the sum does."""
        return self.sum_C / self.count_C


def tokenised(captioner: Captioner, texts: Sequence[str], *, ends: bool = True) -> list[Tokens]:
    """Return the tokens of candidates, as training makes them of captions.

    With `ends` the captioner's stop token is put behind each candidate that does not end with one,
    and counts: the candidate is a whole caption. Without, it may be the beginning of one.

    Raises:
        SettingsError: a candidate is nothing to the language model, or is longer than it can read;
            names it.
    """
    stripped = [text.strip() for text in texts]
    encoded = captioner.tokenizer(stripped, add_special_tokens=False)["input_ids"]
    stops = _stops(captioner) if ends else ()
    whole = [tuple(ids) if ids[-1:] and ids[-1] in stops else (*ids, *stops[:1]) for ids in encoded]
    for text, ids, found in zip(stripped, encoded, whole, strict=True):
        if not ids:
            raise SettingsError(
                f"A candidate must be words of the language model, but {text!r} is nothing to that "
                f"of {captioner.card.captioner_id}."
            )
        _require_room(captioner, text, len(found))
    return whole


def _stops(captioner: Captioner) -> tuple[int, ...]:
    """Return the tokens that end a caption, as the captioner's card says."""
    chosen = captioner.card.decode
    stop = choose(registry.load("clipcap.decoders", chosen.name), "decoder", chosen).stop
    return tuple(captioner.stop_token(one) for one in (stop if isinstance(stop, tuple) else [stop]))


def _require_room(captioner: Captioner, text: str, count: int) -> None:
    room = getattr(captioner.language_model.config, "max_position_embeddings", None)
    prefix_length = captioner.card.prefix_length
    if room is None or count - 1 + prefix_length <= room:  # the last token is never read
        return
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    raise SettingsError(
        f"A candidate must have at most {room - prefix_length + 1} tokens with the language model "
        f"of {captioner.card.captioner_id} ({room} positions, prefix length {prefix_length}), but "
        f"has {count} instead: {shown!r}."
    )


def of_images(
    captioner: Captioner,
    embedding_ND: Tensor,
    norm_N: Tensor | None,
    candidates: Sequence[Sequence[Tokens]],
) -> list[Likelihood]:
    """Return how likely the candidates of N stored (L2-normalised) embeddings are.

    Args:
        captioner: mapper and language model.
        embedding_ND: the images.
        norm_N: the table's `embedding_norm`, needed where the card says `normalized: false`.
        candidates: for each image the tokens of its candidates, by `tokenised`; `[tokens_C] * N`
            where all images have the same.

    Raises:
        SettingsError: wrong width, numbers that are not finite, a norm that is missing.
    """
    scaled_ND = captioner.scaled(embedding_ND, norm_N)
    captioner.eval()
    found: list[Likelihood] = []
    for at in range(0, len(scaled_ND), _PREFIXES):
        part = slice(at, at + _PREFIXES)
        with torch.inference_mode():
            prefix_BPE = captioner.prefix(scaled_ND[part])
        found += of_prefixes(captioner, prefix_BPE, candidates[part])
    return found


@torch.inference_mode()
def of_prefixes(
    captioner: Captioner, prefix_NPE: Tensor, candidates: Sequence[Sequence[Tokens]]
) -> list[Likelihood]:
    """Return how likely candidates are behind N prefixes: of images, of images and a question, ...

    Memory is bounded however many images and candidates there are, and what is found for an image
    does not depend on the others.
    """
    model = captioner.language_model
    read = _as_tries if captioner.reads_trees else _as_rows
    vocabulary = len(model.get_input_embeddings().weight)
    budget = min(_POSITIONS, max(_FEW, _LOGITS // vocabulary))
    found: dict[int, Likelihood] = {}
    for turn, width in _turns(candidates, prefix_NPE.shape[1], budget):
        asked = [candidates[n] for n in turn]
        sums = read(model, prefix_NPE[turn], asked, width)
        for n, tokens_C, sum_C in zip(turn, asked, sums, strict=True):
            found[n] = Likelihood(sum_C, np.array([len(ids) for ids in tokens_C], np.int64))
    return [found[n] for n in range(len(candidates))]


def _turns(
    candidates: Sequence[Sequence[Tokens]], prefix_length: int, budget: int
) -> Iterator[tuple[list[int], int]]:
    """Yield images that are read together, and how many positions of each at a time.

    Images with as many candidates stand together; many images where candidates are few.
    """
    size_N = [sum(map(len, tokens_C)) for tokens_C in candidates]
    longest_N = [max(map(len, tokens_C), default=1) for tokens_C in candidates]
    order = sorted(range(len(candidates)), key=lambda n: -size_N[n])
    most = max(1, min(_MANY, _PREFIXES // prefix_length))
    while order:
        ahead = order[:most]
        width = max(1, min(size_N[ahead[0]], budget // _FEW), *(longest_N[n] for n in ahead))
        turn = ahead[: max(1, budget // width)]
        yield turn, width
        order = order[len(turn) :]


def _as_tries(
    model: Any,  # noqa: ANN401 - transformers' own types are dynamic
    prefix_BPE: Tensor,
    candidates: Sequence[Sequence[Tokens]],
    width: int,
) -> list[Floats]:
    """Read prefixes, then the candidates behind them as trees of about so many tokens."""
    out = model(inputs_embeds=prefix_BPE, use_cache=True, logits_to_keep=1)
    different = {id(tokens_C): tokens_C for tokens_C in candidates}
    parts = {which: tries.tries(tokens_C, width) for which, tokens_C in different.items()}
    found = [np.zeros(len(tokens_C)) for tokens_C in candidates]
    for turn in range(max(map(len, parts.values()))):
        now = {which: part[turn] if turn < len(part) else Trie() for which, part in parts.items()}
        shown = [now[id(tokens_C)] for tokens_C in candidates]
        log_p_BE = _guessed(model, out, shown if len(now) > 1 else shown[:1])
        for b, sum_C in enumerate(tries.sums(shown, log_p_BE.double().cpu().numpy())):
            found[b][shown[b].candidates] = sum_C
    return found


def _guessed(model: Any, prefix: Any, shown: Sequence[Trie]) -> Tensor:  # noqa: ANN401 - as above
    """Return log p of the tokens of the images' trees (or of one for all of them), `log_p_BE`.

    The cache of the prefixes is left as it was.
    """
    first_B1V, cache, device = prefix.logits, prefix.past_key_values, prefix.logits.device
    images = len(first_B1V)
    token_BE, source_BE = (
        tries.padded(rows).to(device).expand(images, -1)
        for rows in ([trie.token_E for trie in shown], [trie.source_E for trie in shown])
    )
    log_p_BE = _log_p(first_B1V, torch.zeros_like(source_BE), token_BE)
    token_BT = tries.padded([trie.token_T for trie in shown]).to(device).expand(images, -1)
    if token_BT.shape[1] == 0:
        return log_p_BE
    before = cache.get_seq_length()
    logits_BTV = model(
        input_ids=token_BT,
        attention_mask=tries.mask(shown, before, model.dtype).to(device),
        position_ids=before + tries.padded([trie.depth_T for trie in shown]).to(device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    cache.crop(-token_BT.shape[1])
    inner_BE = _log_p(logits_BTV, (source_BE - 1).clamp(min=0), token_BE)
    return torch.where(source_BE == 0, log_p_BE, inner_BE)


def _log_p(logits_BTV: Tensor, source_BE: Tensor, token_BE: Tensor) -> Tensor:
    """Return log p of tokens, each as guessed at its source among the T positions."""
    logits_RV = logits_BTV.flatten(0, 1)
    rows = _ROWS if logits_RV.device.type == "cpu" else len(logits_RV)
    whole_R = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits_RV, rows)])
    row_B1 = torch.arange(len(logits_BTV), device=logits_RV.device)[:, None]
    row_BE = row_B1 * logits_BTV.shape[1] + source_BE
    return logits_RV[row_BE, token_BE].float() - whole_R[row_BE]


def _as_rows(
    model: Any,  # noqa: ANN401 - as above
    prefix_BPE: Tensor,
    candidates: Sequence[Sequence[Tokens]],
    _width: int,
) -> list[Floats]:
    """Read prefixes, then the candidates as rows of like lengths, a token at a time."""
    out = model(inputs_embeds=prefix_BPE, use_cache=True, logits_to_keep=1)
    found = [np.zeros(len(tokens_C)) for tokens_C in candidates]
    pairs = [(b, c) for b, tokens_C in enumerate(candidates) for c in range(len(tokens_C))]
    pairs.sort(key=lambda pair: len(candidates[pair[0]][pair[1]]))
    for at in range(0, len(pairs), _MANY):
        part = pairs[at : at + _MANY]
        rows = [candidates[b][c] for b, c in part]
        image_R = torch.tensor([b for b, _ in part], device=prefix_BPE.device)
        token_RT = tries.padded(rows).to(prefix_BPE.device)
        log_p_RT = _read_rows(model, out, image_R, token_RT)
        for (b, c), ids, log_p_T in zip(part, rows, log_p_RT, strict=True):
            found[b][c] = log_p_T[: len(ids)].sum()
    return found


def _read_rows(model: Any, prefix: Any, image_R: Tensor, token_RT: Tensor) -> Floats:  # noqa: ANN401 - as above
    """Return log p of each token of rows behind the prefixes of their images, `log_p_RT`."""
    cache = copy.deepcopy(prefix.past_key_values)
    cache.batch_select_indices(image_R)
    first_R1V = prefix.logits[image_R]
    found = [_log_p(first_R1V, torch.zeros_like(image_R)[:, None], token_RT[:, :1])]
    for t in range(1, token_RT.shape[1]):
        read_R1, guessed_R1 = token_RT[:, t - 1 : t], token_RT[:, t : t + 1]
        out = model(input_ids=read_R1, past_key_values=cache, use_cache=True)
        found.append(_log_p(out.logits, torch.zeros_like(guessed_R1), guessed_R1))
    log_p_RT: Floats = torch.cat(found, 1).double().cpu().numpy()
    return log_p_RT
