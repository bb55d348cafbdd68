"""`prefix_BPE` in, the K best captions of each image out: the original ClipCap's beam search.

Token for token `generate_beam` of rmokady/CLIP_prefix_caption `predict.py` (score = sum of log p
over length, divided anew at each step; a stopped beam repeats token 0 at log p 0), but batched over
images and with a key-value cache. Images do not influence each other; a finished one leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from clipcap.decoders import Candidate, Decodable
from clipcap.errors import SettingsError
from clipcap.settings import Settings as BaseSettings

REPEATED_TOKEN = 0
"""What a stopped beam goes on with; cut off again by its length."""


class Settings(BaseSettings):
    """How the beam search looks for captions; the defaults are the original's."""

    beam_size: int = Field(default=5, ge=1)
    """Captions kept at each step, and candidates returned for each image."""
    max_tokens: int = Field(default=67, ge=1)
    """Tokens after which a caption ends even without the stop text."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits; below 1 the likeliest words win more clearly."""
    stop: str | None = "."
    """The one-token text that ends a caption; empty (null) takes the tokenizer's own end token."""


@dataclass
class _Beams:
    """The images still searched; row `b` is image `image_B[b]` of the batch that was asked for."""

    image_B: Tensor
    token_BKT: Tensor
    score_BK: Tensor
    length_BK: Tensor
    stopped_BK: Tensor

    def keep(self, mask_B: Tensor) -> _Beams:
        """Return the rows where the mask is true."""
        return _Beams(
            self.image_B[mask_B],
            self.token_BKT[mask_B],
            self.score_BK[mask_B],
            self.length_BK[mask_B],
            self.stopped_BK[mask_B],
        )


@torch.inference_mode()
def decode(captioner: Decodable, prefix_BPE: Tensor, settings: Settings) -> list[list[Candidate]]:
    """Search captions for B prefixes; K candidates each, best first.

    Raises:
        SettingsError: more beams than words, no stop token, or no room for so many tokens.
    """
    if not len(prefix_BPE):
        return []
    stop_token = captioner.stop_token(settings.stop)
    logits_BV, cache = captioner.start(prefix_BPE, settings.max_tokens)
    beams = _first(logits_BV, settings, stop_token)
    cache.batch_repeat_interleave(settings.beam_size)
    found: list[list[Candidate]] = [[] for _ in prefix_BPE]
    source_BK = torch.arange(settings.beam_size, device=prefix_BPE.device).expand_as(
        beams.length_BK
    )
    for step in range(1, settings.max_tokens + 1):
        done_B = beams.stopped_BK.all(1) if step < settings.max_tokens else _all(beams.image_B)
        _collect(captioner, beams.keep(done_B), found)
        if bool(done_B.all()):
            break
        first_row_B = torch.arange(len(done_B), device=done_B.device) * settings.beam_size
        row_BK = (first_row_B[:, None] + source_BK)[~done_B]
        beams = beams.keep(~done_B)
        cache.batch_select_indices(row_BK.flatten())
        logits_NV = captioner.advance(beams.token_BKT[:, :, -1].flatten(), cache)
        beams, source_BK = _extend(beams, logits_NV / settings.temperature, stop_token)
    return found


def _all(like_B: Tensor) -> Tensor:
    return torch.ones_like(like_B, dtype=torch.bool)


def _first(logits_BV: Tensor, settings: Settings, stop_token: int) -> _Beams:
    """Open the beams with the K likeliest first tokens."""
    if settings.beam_size > logits_BV.shape[1]:
        raise SettingsError(
            f"`beam_size` must be at most the vocabulary's {logits_BV.shape[1]} words, "
            f"but is {settings.beam_size} instead."
        )
    score_BK, token_BK = _top(logits_BV / settings.temperature, settings.beam_size)
    return _Beams(
        image_B=torch.arange(len(logits_BV), device=logits_BV.device),
        token_BKT=token_BK[:, :, None],
        score_BK=score_BK,
        length_BK=torch.ones_like(score_BK),
        stopped_BK=token_BK == stop_token,
    )


def _top(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return log p and token of each row's likeliest; without a log-softmax over V."""
    logits_NV = logits_NV.float()
    top_NK, token_NK = logits_NV.topk(count, -1)
    return top_NK - logits_NV.logsumexp(-1, keepdim=True), token_NK


def _extend(beams: _Beams, logits_NV: Tensor, stop_token: int) -> tuple[_Beams, Tensor]:
    """Give each image's beams one more token; return which beam each one came from, too.

    Within a beam the order by average is the order by log p, so the K best of K * V extensions are
    among the K best of each beam.
    """
    beam_size = beams.score_BK.shape[1]
    logp_NK, token_NK = _top(logits_NV, beam_size)
    logp_BKK = logp_NK.view(-1, beam_size, beam_size)
    token_BKK = token_NK.view(-1, beam_size, beam_size)
    stopped_BK = beams.stopped_BK
    logp_BKK[stopped_BK] = -torch.inf
    logp_BKK[..., 0].masked_fill_(stopped_BK, 0.0)
    token_BKK[..., 0].masked_fill_(stopped_BK, REPEATED_TOKEN)
    length_BK = beams.length_BK + ~stopped_BK
    average_BKK = (beams.score_BK[:, :, None] + logp_BKK) / length_BK[:, :, None]
    average_BK, place_BK = average_BKK.flatten(1).topk(beam_size, -1)
    source_BK = place_BK // beam_size
    next_BK = token_BKK.flatten(1).gather(1, place_BK)
    length_BK = length_BK.gather(1, source_BK)
    past_BKT = beams.token_BKT.gather(1, source_BK[:, :, None].expand_as(beams.token_BKT))
    grown = _Beams(
        image_B=beams.image_B,
        token_BKT=torch.cat((past_BKT, next_BK[:, :, None]), 2),
        score_BK=average_BK * length_BK,
        length_BK=length_BK,
        stopped_BK=stopped_BK.gather(1, source_BK) | (next_BK == stop_token),
    )
    return grown, source_BK


def _collect(captioner: Decodable, beams: _Beams, found: list[list[Candidate]]) -> None:
    """Turn the beams of finished images into candidates, best first."""
    average_BK = beams.score_BK / beams.length_BK
    order_BK = average_BK.argsort(dim=1, descending=True, stable=True).tolist()
    rows = zip(
        beams.image_B.tolist(),
        beams.token_BKT.tolist(),
        beams.length_BK.int().tolist(),
        average_BK.tolist(),
        beams.stopped_BK.tolist(),
        strict=True,
    )
    for order, (image, tokens, lengths, averages, stopped) in zip(order_BK, rows, strict=True):
        found[image] = [
            Candidate(
                text=captioner.text(tokens[k][: lengths[k]]),
                token_ids=tuple(tokens[k][: lengths[k]]),
                logprob_mean=averages[k],
                finish_reason="stop" if stopped[k] else "length",
            )
            for k in order
        ]
