"""The batched, cached beam search against the original's, written plainly: the same tokens."""

from __future__ import annotations

import pytest
import torch

from clipcap import registry
from clipcap.captioner import Captioner
from clipcap.decoders import Candidate
from clipcap.errors import SettingsError
from tests.captioners import embeddings, tiny_captioner

IMAGES = 60
MAX_TOKENS = 14


def original_generate_beam(
    captioner: Captioner, prefix_BPE: torch.Tensor, beam_size: int, temperature: float = 1.0
) -> list[tuple[tuple[int, ...], float]]:
    """Beams and scores, best first, as `predict.py` of rmokady/CLIP_prefix_caption finds them.

    One image, no cache: the whole sequence of every beam is read again at each step.
    """
    stop = captioner.stop_token(".")
    embed = captioner.language_model.get_input_embeddings()
    lengths = torch.ones(beam_size)
    stopped = torch.zeros(beam_size, dtype=torch.bool)
    generated = prefix_BPE
    tokens = scores = torch.empty(0)
    for step in range(MAX_TOKENS):
        logits = captioner.language_model(inputs_embeds=generated).logits[:, -1, :] / temperature
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
        stopped = stopped | next_tokens.eq(stop).reshape(-1)
        if stopped.all():
            break
    scores = scores / lengths
    return [
        (tuple(tokens[k, : int(lengths[k])].tolist()), float(scores[k]))
        for k in scores.argsort(descending=True).tolist()
    ]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)


@torch.inference_mode()
def ours(captioner: Captioner, batch_size: int, **settings: float) -> list[list[Candidate]]:
    beam = registry.load("clipcap.decoders", "beam")
    chosen = beam.Settings(max_tokens=MAX_TOKENS, **settings)
    prefix_BPE = captioner.prefix(10 * embeddings(IMAGES))
    found: list[list[Candidate]] = []
    for part in torch.split(prefix_BPE, batch_size):
        found += beam.decode(captioner, part, chosen)
    return found


@pytest.mark.parametrize("batch_size", [1, 7, IMAGES])
@pytest.mark.parametrize(
    ("beam_size", "temperature"), [(5, 1.0), (1, 1.0), (3, 0.7)], ids=["original", "one", "cool"]
)
@torch.inference_mode()
def test_beam_finds_the_tokens_of_the_original_in_its_order(
    captioner: Captioner, batch_size: int, beam_size: int, temperature: float
) -> None:
    found = ours(captioner, batch_size, beam_size=beam_size, temperature=temperature)
    for row, candidates in zip(embeddings(IMAGES), found, strict=True):
        wanted = original_generate_beam(
            captioner, captioner.prefix(10 * row[None]), beam_size, temperature
        )
        assert [candidate.token_ids for candidate in candidates] == [ids for ids, _ in wanted]
        assert [candidate.logprob_mean for candidate in candidates] == pytest.approx(
            [score for _, score in wanted], abs=1e-5
        )


def test_the_comparison_sees_stopped_beams_long_beams_and_both_in_one_image(
    captioner: Captioner,
) -> None:
    """Equality on captions that all end alike would prove little."""
    reasons = [{candidate.finish_reason for candidate in row} for row in ours(captioner, 7)]
    assert {"stop"} in reasons
    assert {"stop", "length"} in reasons
    assert len({len(candidate.token_ids) for row in ours(captioner, 7) for candidate in row}) > 5


@torch.inference_mode()
def test_logprob_mean_is_the_language_models_own(captioner: Captioner) -> None:
    row = embeddings(1)
    candidate = captioner.caption(row)[0][1]
    ids = torch.tensor([candidate.token_ids])
    read = captioner.language_model.get_input_embeddings()(ids)
    inputs = torch.cat((captioner.prefix(row), read), 1)
    logp = captioner.language_model(inputs_embeds=inputs).logits.log_softmax(-1)
    start = captioner.card.prefix_length - 1
    spoken = logp[0, start:-1].gather(1, ids[0, :, None])
    assert candidate.logprob_mean == pytest.approx(float(spoken.mean()), abs=1e-5)


def test_more_beams_than_words_are_refused(captioner: Captioner) -> None:
    with pytest.raises(SettingsError, match="`beam_size` must be at most"):
        ours(captioner, 7, beam_size=100)
