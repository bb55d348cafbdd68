"""What runs on a GPU: shapes recorded by a recorder of the test's own, and the order of copies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from clipcap import cuda, graphs
from clipcap.cards import Choice
from clipcap.encoders import openclip
from tests.captioners import embeddings, tiny_captioner
from tests.models import SIDE_PX, make_tiny_clip


def forward(pixels_BHWC: Tensor) -> Tensor:
    """Embed each image by itself."""
    return pixels_BHWC.flatten(1).float()[:, :2] * 2


class Recorder:
    """Records as a GPU does: a replay reads and writes the same memory again."""

    def __init__(self, error: Exception | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0
        self.error = error

    def __call__(self, run: cuda.Forward, pixels_BHWC: Tensor) -> cuda.Recorded:
        """Record, or say why not."""
        self.shapes.append(tuple(pixels_BHWC.shape))
        if self.error is not None:
            raise self.error
        static_BHWC = torch.zeros_like(pixels_BHWC)
        out_BD = run(static_BHWC)

        def replay() -> None:
            self.replays += 1
            out_BD.copy_(run(static_BHWC))

        return cuda.Recorded(static_BHWC, out_BD, replay)


def batch(count: int, start: int = 0) -> Tensor:
    """Return small pictures, all different."""
    return (torch.arange(count * 12) + start).byte().view(count, 2, 2, 3)


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    recorder = Recorder()
    graphs = cuda.Graphs(forward, recorder)
    for start in (0, 5, 9):
        assert torch.equal(graphs(batch(8, start)), forward(batch(8, start)))
    assert (recorder.shapes, recorder.replays) == ([(8, 2, 2, 3)], 2)


@pytest.mark.parametrize(("count", "replays"), [(8, 1), (7, 1), (4, 1), (3, 0), (9, 0), (1, 0)])
def test_a_nearly_full_batch_takes_the_recorded_shape(count: int, replays: int) -> None:
    recorder = Recorder()
    graphs = cuda.Graphs(forward, recorder)
    for _ in range(2):
        graphs(batch(8))
    recorder.replays = 0
    assert torch.equal(graphs(batch(count, 7)), forward(batch(count, 7)))
    assert recorder.replays == replays


def test_pictures_of_another_size_take_another_graph() -> None:
    recorder = Recorder()
    graphs = cuda.Graphs(forward, recorder)
    for _ in range(2):
        graphs(batch(8))
    other_BHWC = batch(8).view(8, 1, 4, 3)
    assert torch.equal(graphs(other_BHWC), forward(other_BHWC))
    assert recorder.replays == 1


def test_no_more_than_two_shapes_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    recorder = Recorder()
    graphs = cuda.Graphs(forward, recorder)
    for count in (100, 30, 8, 100):
        for _ in range(2):
            assert torch.equal(graphs(batch(count)), forward(batch(count)))
    assert [shape[0] for shape in recorder.shapes] == [100, 30, 8, 100]
    assert len(waits) == 2


def test_what_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(RuntimeError("operation not permitted when stream is capturing\nmore"))
    graphs = cuda.Graphs(forward, recorder)
    with caplog.at_level(logging.INFO):
        for count in (8, 8, 8, 5, 5):
            assert torch.equal(graphs(batch(count)), forward(batch(count)))
    assert len(recorder.shapes) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "runs without CUDA graphs: operation not permitted when stream is capturing"
    ]


class Device:
    """Stands for `torch.cuda`: work waits in a queue until somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.streams: list[object] = []
        device = self

        class Stream:
            def __init__(self, _device: object = None) -> None:
                device.streams.append(self)

            def wait_stream(self, other: object) -> None:
                device.done.append("the computing waits for the copy")
                assert other is device.streams[0]

        class Event:
            def record(self) -> None:
                device.done.append("recorded")

            def synchronize(self) -> None:
                device.done.append("waited")

        @contextmanager
        def inside(_: object) -> Iterator[None]:
            yield

        computing = Stream.__new__(Stream)
        for name, value in {
            "Stream": Stream,
            "Event": Event,
            "device": inside,
            "stream": inside,
            "current_stream": lambda: computing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        empty = torch.empty
        monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
        monkeypatch.setattr(Tensor, "record_stream", lambda _self, _stream: None)
        monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **kw: empty(*size, **kw))


def test_two_batches_may_be_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    pipeline = cuda.Pipeline(forward, torch.device("cpu"))
    pixels_BHWC = [batch(8, start) for start in (0, 5, 9, 3)]
    waits: list[Callable[[], Tensor]] = [pipeline.begin(pixels) for pixels in pixels_BHWC[:2]]
    assert device.done == ["the computing waits for the copy", "recorded"] * 2
    for wait, pixels in zip(waits, pixels_BHWC, strict=False):
        found_BD = wait()
        assert torch.equal(found_BD, forward(pixels))
        assert not found_BD.is_inference()
    assert device.done[4:] == ["waited"] * 2


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("wanted", ["fp32", "auto"])
def test_a_gpu_embeds_as_the_cpu_does(tmp_path: Path, wanted: str) -> None:
    """Whole batches, the same shape again, a nearly full one, two under way."""
    folder = make_tiny_clip(tmp_path / "tiny")
    settings = {"model": str(folder), "precision": wanted}
    on_gpu, on_cpu = (
        openclip.load(openclip.Settings.model_validate(values))
        for values in (settings | {"device": "cuda"}, {"model": str(folder), "device": "cpu"})
    )
    values = torch.arange(5 * 32 * SIDE_PX**2 * 3) * 31
    pixels_NBHWC = (values % 256 ^ values // 4099 % 256).byte()
    pixels_NBHWC = pixels_NBHWC.view(5, 32, SIDE_PX, SIDE_PX, 3)
    waits = [on_gpu.encode_pixels(part) for part in pixels_NBHWC]
    waits.append(on_gpu.encode_pixels(pixels_NBHWC[0, :20]))
    found_BD = torch.cat([wait() for wait in waits])
    parts = [*pixels_NBHWC, pixels_NBHWC[0, :20]]
    expected_BD = torch.cat([on_cpu.encode_pixels(part)() for part in parts])
    off_B = 1 - torch.nn.functional.cosine_similarity(found_BD.double(), expected_BD.double())
    assert off_B.max() < 1e-4
    openclip.forget()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("name", "stop_bonus"), [("beam", 1.0), ("greedy", 0.5), ("nucleus", 0.5)])
def test_a_gpu_captions_as_the_cpu_does(name: str, stop_bonus: float) -> None:
    """Full slots and a last few, slots refilled, buffers that grow, the second time recorded."""
    decode = Choice(name=name, settings={"max_tokens": 26, "stop": "."})
    on_cpu = tiny_captioner(sharpness=2.0, stop_bonus=stop_bonus)
    on_gpu = tiny_captioner(sharpness=2.0, stop_bonus=stop_bonus).to("cuda").for_captions("fp32")
    wanted = on_cpu.caption(embeddings(40), decode=decode, slots=8)
    for _ in range(2):
        found = on_gpu.caption(embeddings(40), decode=decode, slots=8)
        for row, other in zip(found, wanted, strict=True):
            assert [one.token_ids for one in row] == [one.token_ids for one in other]
            means = [one.logprob_mean for one in other]
            assert [one.logprob_mean for one in row] == pytest.approx(means, abs=1e-3)
    (tree,) = on_gpu._trees._trees.values()
    assert isinstance(tree, graphs.Recorded)
    assert tree._can_record
    assert tree._steps


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_captions_in_half_the_numbers(precision: Literal["bf16", "fp16"]) -> None:
    """Words may change places where two are as likely; recorded steps must still be used."""
    on_gpu = tiny_captioner(sharpness=2.0, stop_bonus=1.0).to("cuda").for_captions(precision)
    wanted = tiny_captioner(sharpness=2.0, stop_bonus=1.0).caption(embeddings(40), slots=8)
    on_gpu.caption(embeddings(40), slots=8)
    found = on_gpu.caption(embeddings(40), slots=8)
    same = [
        row[0].token_ids == other[0].token_ids for row, other in zip(found, wanted, strict=True)
    ]
    assert sum(same) >= 28
    (tree,) = on_gpu._trees._trees.values()
    assert tree._can_record
    assert tree._steps
