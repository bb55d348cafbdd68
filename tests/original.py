"""One prefix in, beams out: `generate_beam` of rmokady/CLIP_prefix_caption `predict.py`, plainly.

One image, no cache: the whole sequence of every beam is read again at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Asked:
    """The arguments of the search."""

    stop: int
    max_tokens: int
    beam_size: int = 5
    temperature: float = 1.0


@torch.inference_mode()
def generate_beam(
    language_model: Any,  # noqa: ANN401 - transformers' own types are dynamic
    prefix_BPE: torch.Tensor,
    asked: Asked,
) -> list[tuple[tuple[int, ...], float]]:
    """Return beams and scores of one image (B = 1), best first."""
    beam_size = asked.beam_size
    embed = language_model.get_input_embeddings()
    lengths = torch.ones(beam_size)
    stopped = torch.zeros(beam_size, dtype=torch.bool)
    generated = prefix_BPE
    tokens = scores = torch.empty(0)
    for step in range(asked.max_tokens):
        logits = language_model(inputs_embeds=generated).logits[:, -1, :] / asked.temperature
        logp = logits.softmax(-1).log()
        if step == 0:
            first_scores, first_tokens = logp.topk(beam_size, -1)
            generated = generated.expand(beam_size, *generated.shape[1:])
            next_tokens, scores = first_tokens.permute(1, 0), first_scores.squeeze(0)
            tokens = next_tokens
        else:
            logp[stopped] = -float("inf")
            logp[stopped, 0] = 0
            sums = scores[:, None] + logp
            lengths[~stopped] += 1
            averages, places = (sums / lengths[:, None]).view(-1).topk(beam_size, -1)
            source = places // sums.shape[1]
            lengths = lengths[source]
            next_tokens = (places % sums.shape[1]).unsqueeze(1)
            tokens = torch.cat((tokens[source], next_tokens), dim=1)
            generated = generated[source]
            scores = averages * lengths
            stopped = stopped[source]
        read = embed(next_tokens.reshape(-1)).view(beam_size, 1, -1)
        generated = torch.cat((generated, read), dim=1)
        stopped = stopped | next_tokens.eq(asked.stop).reshape(-1)
        if stopped.all():
            break
    scores = scores / lengths
    return [
        (tuple(tokens[k, : int(lengths[k])].tolist()), float(scores[k]))
        for k in scores.argsort(descending=True).tolist()
    ]
