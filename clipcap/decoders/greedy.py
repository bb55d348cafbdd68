"""`prefix_BPE` in, one caption per image out: the likeliest token at each step.

What the original's `generate2` does in truth: before an argmax its `top_p` and temperature change
nothing.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from clipcap.decoders import Candidate, Decodable
from clipcap.settings import Settings as BaseSettings


class Settings(BaseSettings):
    """When a greedy caption ends."""

    max_tokens: int = Field(default=67, ge=1)
    """Tokens after which a caption ends even without the stop text."""
    stop: str | None = "."
    """The one-token text that ends a caption; empty (null) takes the tokenizer's own end token."""


@torch.inference_mode()
def decode(captioner: Decodable, prefix_BPE: Tensor, settings: Settings) -> list[list[Candidate]]:
    """Write one caption for each of B prefixes; a finished image leaves the batch.

    Raises:
        SettingsError: no stop token, or no room for so many tokens.
    """
    if not len(prefix_BPE):
        return []
    stop_token = captioner.stop_token(settings.stop)
    logits_BV, cache = captioner.start(prefix_BPE, settings.max_tokens)
    tokens: list[list[int]] = [[] for _ in prefix_BPE]
    logps: list[list[float]] = [[] for _ in prefix_BPE]
    image_B = torch.arange(len(prefix_BPE), device=prefix_BPE.device)
    for step in range(1, settings.max_tokens + 1):
        top_B, token_B = logits_BV.float().max(-1)
        logp_B = top_B - logits_BV.float().logsumexp(-1)
        for image, token, logp in zip(
            image_B.tolist(), token_B.tolist(), logp_B.tolist(), strict=True
        ):
            tokens[image].append(token)
            logps[image].append(logp)
        open_B = token_B != stop_token
        if step == settings.max_tokens or not bool(open_B.any()):
            break
        image_B = image_B[open_B]
        cache.batch_select_indices(open_B.nonzero().flatten())
        logits_BV = captioner.advance(token_B[open_B], cache)
    return [
        [
            Candidate(
                text=captioner.text(ids),
                token_ids=tuple(ids),
                logprob_mean=sum(logp) / len(logp),
                finish_reason="stop" if ids[-1] == stop_token else "length",
            )
        ]
        for ids, logp in zip(tokens, logps, strict=True)
    ]
