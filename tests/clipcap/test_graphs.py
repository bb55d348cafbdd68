"""Steps as a GPU reads them, recorded by a recorder of the test's own: the same captions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest
import torch

from bench import gpu_decoding
from clipcap import graphs, trees
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner
from clipcap.cards import Choice
from tests import pretended
from tests.captioners import embeddings, llama_captioner, tiny_captioner

BEAM = Choice(name="beam", settings={"beam_size": 3, "max_tokens": 26, "stop": "."})
IMAGES = 12


class Recorder:
    """Records as a GPU does: a replay reads and writes the same memory again."""

    def __init__(self, error: Exception | None = None, off: float = 0.0) -> None:
        self.recorded = 0
        self.replays = 0
        self.error, self.off = error, off

    def __call__(self, run: graphs.Run) -> graphs.Recording:
        """Record, or say why not."""
        self.recorded += 1
        if self.error is not None:
            raise self.error
        logits_NKV = torch.full_like(run(), torch.nan)
        tree: graphs.Recorded = run.func.__self__  # type: ignore[attr-defined]
        memory = [*tree._keys, *tree._values]

        def replay() -> None:
            self.replays += 1
            now = [*tree._keys, *tree._values]
            assert all(one is other for one, other in zip(memory, now, strict=True))
            logits_NKV.copy_(run() + self.off)

        return graphs.Recording(logits_NKV, replay)


def recorded_by(
    captioner: Captioner, recorder: Callable[[graphs.Run], graphs.Recording]
) -> dict[int, graphs.Recorded]:
    """Let a captioner read in recorded steps; return its trees by their slots, used again."""
    made: dict[int, graphs.Recorded] = {}

    def tree(beams: int, _max_tokens: int, slots: int) -> trees.Tree:
        found = made.get(slots) or graphs.Recorded(captioner.language_model, beams, slots, recorder)
        made[slots] = found
        return found.cleared()

    captioner.tree = tree  # type: ignore[method-assign,assignment]
    return made


def captions(captioner: Captioner, slots: int, decode: Choice = BEAM) -> list[list[Candidate]]:
    """Return the captions of some images."""
    return captioner.caption(embeddings(IMAGES), decode=decode, slots=slots)


def require_same(found: list[list[Candidate]], wanted: list[list[Candidate]]) -> None:
    """Compare captions; rounding may differ with the width."""
    assert [[one.token_ids for one in row] for row in found] == [
        [one.token_ids for one in row] for row in wanted
    ]
    for row, other in zip(found, wanted, strict=True):
        means = [one.logprob_mean for one in other]
        assert [one.logprob_mean for one in row] == pytest.approx(means, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "slots"), [(tiny_captioner, 2), (tiny_captioner, 64), (llama_captioner, 5)]
)
def test_recorded_steps_find_the_same_captions(make: Callable[[], Captioner], slots: int) -> None:
    captioner = make()
    wanted = captions(captioner, slots)
    recorder = Recorder()
    made = recorded_by(captioner, recorder)
    for _ in range(3):
        require_same(captions(captioner, slots), wanted)
    assert recorder.replays > 20
    assert 1 < recorder.recorded < 20
    before = recorder.recorded
    captions(captioner, slots)
    assert recorder.recorded == before, "the next images find every step recorded"
    assert list(made) == [min(slots, IMAGES)]


@pytest.mark.parametrize("name", ["greedy", "nucleus"])
def test_every_decoder_reads_recorded_steps(name: str) -> None:
    decode = Choice(name=name, settings={"max_tokens": 20, "stop": "."})
    captioner = tiny_captioner()
    wanted = captions(captioner, 8, decode)
    recorder = Recorder()
    recorded_by(captioner, recorder)
    require_same(captions(captioner, 8, decode), wanted)
    assert recorder.replays > 0


def test_images_that_leave_and_join_find_their_places_in_recorded_steps() -> None:
    """Captions of many lengths: slots are refilled, beams dropped, the buffer grows."""
    captioner = tiny_captioner(sharpness=2.0, stop_bonus=1.0)
    wanted = captions(captioner, 6)
    lengths = {len(one.token_ids) for row in wanted for one in row}
    assert len(lengths) > 5, lengths
    recorder = Recorder()
    recorded_by(captioner, recorder)
    require_same(captions(captioner, 6), wanted)
    assert recorder.replays > 5


def test_the_benchmark_for_gpus_finds_the_same_tokens_either_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "x --device cpu --tiny --batches 2,3 --images 3 --tokens 6 --repeats 1 --numbers fp32"
    monkeypatch.setattr("sys.argv", words.split())
    monkeypatch.setattr(gpu_decoding, "COPIED_BYTES", 2**20)
    gpu_decoding.main()
    told = capsys.readouterr().out
    assert "other tokens" not in told
    for batch in (2, 3):
        for name in ("recorded", "plain", "generate"):
            assert re.search(rf"\| {batch} \| {name} \| [\d,.]+ \| \d+% \|", told)
    assert re.search(r"At the best batches: \d+\.\d\d times `generate`", told)


def test_few_images_are_read_by_themselves() -> None:
    captioner = tiny_captioner()
    recorder = Recorder()
    tree = graphs.Recorded(captioner.language_model, 2, 8, recorder)
    prefix_BPE = captioner.prefix(embeddings(3))
    with torch.inference_mode():
        tree.join(prefix_BPE)
        for _ in range(4):
            tree.advance(torch.full((3, 2), 4), torch.zeros(3, 2, dtype=torch.long))
    assert recorder.recorded == 0


def test_what_cannot_be_recorded_is_read_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    captioner = tiny_captioner()
    wanted = captions(captioner, 16)
    recorder = Recorder(RuntimeError("operation not permitted when stream is capturing\nmore"))
    recorded_by(captioner, recorder)
    with caplog.at_level(logging.INFO):
        require_same(captions(captioner, 16), wanted)
    assert recorder.recorded == 1
    assert [record.getMessage() for record in caplog.records] == [
        "captions are found without CUDA graphs: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("off", [0.1, float("nan")])
def test_a_replay_that_gives_other_logits_is_not_used(
    off: float, caplog: pytest.LogCaptureFixture
) -> None:
    captioner = tiny_captioner()
    wanted = captions(captioner, 16)
    recorder = Recorder(off=off)
    recorded_by(captioner, recorder)
    with caplog.at_level(logging.INFO):
        require_same(captions(captioner, 16), wanted)
    assert (recorder.recorded, recorder.replays) == (1, 1)
    assert "a replay gives other logits" in caplog.text


def test_empty_slots_leave_no_nan_behind() -> None:
    """In float16 the mask of who sees nothing is minus infinity, and NaN would stay there."""
    captioner = tiny_captioner()
    captioner.language_model.half()
    tree = graphs.Recorded(captioner.language_model, 2, 4, Recorder())
    prefix_BPE = captioner.prefix(embeddings(3))
    token_NK, source_NK = torch.full((3, 2), 4), torch.zeros(3, 2, dtype=torch.long)
    with torch.inference_mode():
        tree.join(prefix_BPE)
        for _ in range(3):
            tree.advance(token_NK, source_NK)
        tree.join(prefix_BPE[:1])
        more_NK = torch.full((4, 2), 4)
        logits_NKV = tree.advance(more_NK, torch.zeros(4, 2, dtype=torch.long))
    assert bool(logits_NKV.isfinite().all())
    (step,) = tree._steps.values()
    assert bool(step.inputs[-1].any(-1).all()), "every slot sees something"
    assert all(bool(one.isfinite().all()) for one in (*tree._keys, *tree._values))


def test_trees_on_a_gpu_are_used_again_and_at_most_two_kept() -> None:
    with pretended.gpu():
        model = tiny_captioner().language_model.to("cuda")
        kept = graphs.Kept()

        def tree(slots: int) -> trees.Tree:
            return kept.tree(model, 5, slots, takes_trees=True)

        first, second = tree(7), tree(64)
        assert isinstance(first, graphs.Recorded)
        assert tree(64) is second
        assert tree(7) is first
        assert tree(3) is first, "the few that are left need no tree of their own"
        assert tree(8) is second
        third = tree(65)
        assert tree(65) is third
        assert tree(64) is second
        assert tree(7) is second, "two are kept"
        plain = kept.tree(model, 5, 64, takes_trees=False)
    assert isinstance(plain, trees.Rows)


def test_a_processor_reads_plain_trees() -> None:
    captioner = tiny_captioner()
    assert type(captioner.tree(5, 12, 4)) is trees.Shared
    assert captioner.tree(5, 12, 4) is not captioner.tree(5, 12, 4)
