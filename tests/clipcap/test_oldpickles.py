"""Data files of the original ClipCap: the real one, damaged ones, and ones that want to run."""

from __future__ import annotations

import builtins
import copyreg
import io
import json
import os
import pickle
import resource
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from clipcap import oldpickles, unpickling
from clipcap.errors import NotFoundError, SettingsError

REAL = Path(__file__).parents[3] / "shared" / "data" / "clipcap_pickle"
PLAIN = "only numbers, texts, lists, dicts and torch tensors are read"


def data(rows: int = 4, dim: int = 6, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    captions = [
        {"image_id": 100 + n // 2, "id": n, "caption": f"caption {n} é", "clip_embedding": n}
        for n in range(rows)
    ]
    embedding_ND = torch.randn(rows, dim, generator=generator).to(dtype)
    return {"clip_embedding": embedding_ND, "captions": captions}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[object], str]:
    """Write something as a file, pickled unless it is bytes; return its path."""

    def write(content: object, protocol: int = 4) -> str:
        path = tmp_path / "oscar_split_ViT-B_32_train.pkl"
        made = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
        path.write_bytes(made)
        return str(path)

    return write


def test_the_real_file_gives_what_its_copies_hold() -> None:
    if not REAL.is_dir():
        pytest.skip(f"the original's data file is not at {REAL}")
    embedding_ND, captions = oldpickles.read(str(REAL / "oscar_split_ViT-B_32_train.pkl"))
    with np.load(REAL / "embeddings_ViT-B_32.npz") as copy:
        assert np.array_equal(embedding_ND.numpy(), copy["emb"].astype(np.float32))
    assert embedding_ND.dtype == torch.float32
    wanted = json.loads((REAL / "captions_ViT-B_32.json").read_text())
    assert [one["clip_embedding"] for one in wanted] == list(range(len(captions)))
    assert [[(one["caption"], one["image_id"])] for one in wanted] == captions


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float64])
def test_rows_and_captions_are_those_that_were_pickled(
    written: Callable[..., str], protocol: int, dtype: torch.dtype
) -> None:
    made = data(dtype=dtype)
    made["captions"].append({"caption": "", "clip_embedding": 2})
    embedding_ND, captions = oldpickles.read(written(made, protocol))
    assert torch.equal(embedding_ND, made["clip_embedding"].float())
    assert captions[0] == [oldpickles.Caption("caption 0 é", "100")]
    assert captions[2] == [("caption 2 é", "101"), ("", "")]
    embedding_ND += 1  # it owns its numbers


def test_a_view_of_a_larger_tensor_is_read_as_the_view(written: Callable[..., str]) -> None:
    made = data() | {"clip_embedding": torch.arange(80.0).view(10, 8)[2::2, 1:7]}
    embedding_ND, _ = oldpickles.read(written(made))
    assert torch.equal(embedding_ND, torch.arange(80.0).view(10, 8)[2::2, 1:7])


# --- files that want to run something ----------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.made


class Persistent(pickle.Pickler):
    """Writes one kind of object as a reference."""

    def persistent_id(self, value: object) -> object:
        return ("storage", "x", "0", "cpu", 1, None) if isinstance(value, Calls) else None


def persistent() -> bytes:
    stream = io.BytesIO()
    Persistent(stream, 4).dump([Calls(print)])
    return stream.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def extension(command: str) -> bytes:
    """A pickle of `os.system` by a number that this process has given it."""
    del command
    copyreg.add_extension("posix", "system", 241)
    try:
        return pickle.dumps(os.system, 2)
    finally:
        copyreg.remove_extension("posix", "system", 241)


def in_a_storage(payload: bytes) -> bytes:
    return b"\x80\x04" + b"ctorch.storage\n_load_from_bytes\n" + b"B" + struct.pack(
        "<I", len(payload)
    ) + payload + b"\x85R."  # fmt: skip


def attacks(command: str) -> dict[str, tuple[bytes, str]]:
    """Files that run a shell command where they are unpickled, and what is told of each."""
    system, code = text(command), f"__import__('os').system({command!r})"
    by_torch = io.BytesIO()
    torch.save([Calls(os.system, command)], by_torch)
    old = io.BytesIO()
    torch.save([Calls(os.system, command)], old, _use_new_zipfile_serialization=False)
    system_name, eval_name = "posix.system", "builtins.eval"
    return {
        "global": (b"\x80\x02cposix\nsystem\n" + system + b"\x85R.", system_name),
        "stack_global": (pickle.dumps(Calls(os.system, command), 4), system_name),
        "protocol 0": (pickle.dumps(Calls(os.system, command), 0), "must be a pickle"),
        "inst": (b"\x80\x02(" + system + b"iposix\nsystem\n.", system_name),
        "obj": (b"\x80\x02(cposix\nsystem\n" + system + b"o.", system_name),
        "newobj": (b"\x80\x02cposix\nsystem\n" + system + b"\x85\x81.", system_name),
        "eval": (pickle.dumps(Calls(builtins.eval, code), 4), eval_name),
        "getattr": (pickle.dumps(Calls(getattr, "a", "upper"), 4), "builtins.getattr"),
        "a name with dots": (
            b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.",
            "torch._utils._rebuild_tensor_v2.__globals__",
        ),
        "a name split elsewhere": (
            b"\x80\x04" + text("torch") + text("_utils._rebuild_tensor_v2") + b"\x93" + b")R.",
            "torch._utils._rebuild_tensor_v2 with unknown arguments",
        ),
        "the allowed, called with a command": (
            b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n(" + system * 6 + b"tR.",
            "tensor of an unknown form",
        ),
        "ordered dict": (pickle.dumps(OrderedDict([("a", Calls(os.system, command))])), "system"),
        "build": (b"\x80\x02ccollections\nOrderedDict\n)R}b.", "the instruction BUILD"),
        "in a storage": (in_a_storage(pickle.dumps(Calls(os.system, command), 4)), system_name),
        "torch's file in a storage": (in_a_storage(by_torch.getvalue()), "instruction"),
        "torch's old file in a storage": (in_a_storage(old.getvalue()), system_name),
        "in a storage in a storage": (
            in_a_storage(in_a_storage(pickle.dumps(Calls(os.system, command), 4))),
            "torch.storage._load_from_bytes",
        ),
        "torch's file": (by_torch.getvalue(), "must be a pickle"),
        "extension": (extension(command), "the instruction EXT1"),
        "persistent id": (persistent(), "a reference to an object outside"),
        "persistent id by text": (b"\x80\x02Pposix system\n.", "the instruction PERSID"),
    }


@pytest.mark.parametrize("name", attacks(""))
def test_nothing_in_a_file_is_run(name: str, written: Callable[..., str], tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    content, told = attacks(f"touch {mark}")[name]
    with pytest.raises(SettingsError, match=r"cannot be read as data of the original") as error:
        oldpickles.read(written(content))
    assert told in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["global", "stack_global", "inst", "obj", "protocol 0"])
def test_the_attacks_would_work_on_pickle(name: str, tmp_path: Path) -> None:
    """Else the test above proved nothing."""
    mark = tmp_path / "was-here"
    pickle.loads(attacks(f"touch {mark}")[name][0])  # noqa: S301 - our own, harmless
    assert mark.exists()


# --- files that want memory or time ------------------------------------------------------------


def nested_key(depth: int = 64) -> bytes:
    """A dict whose one key is pairs of pairs of pairs: its hash needs 2^64 steps."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(depth))
    return b"\x80\x04]()q\x00" + pairs + b"e}h%cNs." % depth


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x80\x04Nr\xff\xff\xff\xff.", "must be a dict"),
        (b"\x80\x04B\xff\xff\xff\xff.", "cut off"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "cut off"),
        (b"\x80\x04X\xff\xff\xff\xff.", "cut off"),
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "must be a dict|damaged"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "instruction BYTEARRAY8"),
        (b"\x80\x04}" + b"(" * 9 + b"u.", "damaged|texts"),
        (b"\x80\x04" + b"]" * 200_000, "cut off"),
        (b"\x80\x04" + b"(" * 200_000 + b"t" * 200_000 + b".", "must be a dict"),
        (nested_key(), "not texts"),
        (b"\x80\x04\x8b" + b"\xff" * 4 + b".", "instruction LONG4"),
        (b"\x80\x04I" + b"9" * 100_000 + b"\n.", "instruction INT"),
    ],
)
def test_no_file_takes_more_than_its_size(
    content: bytes, told: str, written: Callable[..., str]
) -> None:
    path = written(content)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.process_time()
    with pytest.raises(SettingsError, match=told):
        oldpickles.read(path)
    assert time.process_time() - began < 5
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
    assert grown_kib < 100_000


def test_a_file_of_too_many_values_is_refused(written: Callable[..., str]) -> None:
    path = written(data())
    with (
        patch.object(unpickling, "MAX_VALUES", 20),
        pytest.raises(SettingsError, match="20 values"),
    ):
        oldpickles.read(path)


def tensor(shape: str, stride: str, offset: str = "K\x00", numbers: int = 4) -> bytes:
    """A file of one tensor over `numbers` halves, with any shape."""
    whole = pickle.dumps(torch.zeros(numbers, dtype=torch.float16), 3)
    begin = whole.index(b"B")
    (length,) = struct.unpack_from("<I", whole, begin + 1)
    payload = whole[begin : begin + 5 + length]
    rest = f"{offset}{shape}{stride}".encode("latin1")
    return (
        b"\x80\x03}X\x0e\x00\x00\x00clip_embeddingctorch._utils\n_rebuild_tensor_v2\n("
        + b"ctorch.storage\n_load_from_bytes\n" + payload + b"\x85R" + rest
        + b"\x89ccollections\nOrderedDict\n)RtRsX\x08\x00\x00\x00captions]s."
    )  # fmt: skip


def test_a_tensor_stays_within_its_storage(written: Callable[..., str]) -> None:
    two, one, zero, many = "K\x02", "K\x01", "K\x00", "J\xff\xff\xff\x7f"
    pair = f"{two}{two}\x86"
    with pytest.raises(SettingsError, match="must have a caption"):
        oldpickles.read(written(tensor(pair, f"{two}{one}\x86")))
    for shape, stride, offset in (
        (pair, f"{two}{one}\x86", one),
        (pair, f"{many}{one}\x86", zero),
        (f"{many}{two}\x86", f"{zero}{one}\x86", zero),
        (pair, f"{two}J\xff\xff\xff\xff\x86", zero),
        (pair, f"{two}\x85", zero),
        (pair, f"{two}{one}\x86", "J\xff\xff\xff\xff"),
    ):
        with pytest.raises(SettingsError, match="tensor of"):
            oldpickles.read(written(tensor(shape, stride, offset)))


@pytest.mark.parametrize("more", [b"", b"xx", b"\0" * 8])
def test_a_storage_has_as_many_bytes_as_it_says(more: bytes, written: Callable[..., str]) -> None:
    whole = pickle.dumps(torch.zeros(4, dtype=torch.float16), 3)
    begin = whole.index(b"B") + 5
    payload = whole[begin : begin + struct.unpack_from("<I", whole, begin - 4)[0]]
    told = "whose bytes are not as many" if more else "must be a dict"
    with pytest.raises(SettingsError, match=told):
        oldpickles.read(written(in_a_storage(payload + more)))


# --- damaged and odd files ---------------------------------------------------------------------


def test_every_cut_of_a_file_is_an_error(written: Callable[..., str]) -> None:
    whole = pickle.dumps(data(), 4)
    for length in range(len(whole)):
        with pytest.raises(SettingsError, match="cannot be read as data of the original"):
            oldpickles.read(written(whole[:length]))
    with pytest.raises(SettingsError, match="3 bytes follow"):
        oldpickles.read(written(whole + b"abc"))


def test_any_changed_byte_gives_data_or_an_error(written: Callable[..., str]) -> None:
    whole = pickle.dumps(data(2, 3), 4)
    generator = torch.Generator().manual_seed(7)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] = int(torch.randint(256, (), generator=generator))
        try:
            found, captions = oldpickles.read(written(bytes(changed)))
        except SettingsError:
            continue
        assert isinstance(found, Tensor)
        assert len(found) == len(captions)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"clip_embedding": [1.0]}, "must be a tensor"),
        ({"clip_embedding": torch.ones(4)}, "must be a tensor of N rows"),
        ({"clip_embedding": torch.ones(4, 6, dtype=torch.int64)}, "must be a tensor of N rows"),
        ({"clip_embedding": torch.ones(0, 6)}, r"is empty \(\(0, 6\)\)"),
        (
            {"clip_embedding": torch.tensor([[1.0], [float("nan")], [1], [1]])},
            "1 of 4 rows .*row 1",
        ),
        ({"clip_embedding": torch.ones(3, 6)}, "Caption 3 is of row 3, but there are rows 0 to 2"),
        ({"clip_embedding": torch.ones(5, 6)}, "1 have none .row 4 first; 4 captions"),
        ({"captions": "a cat"}, "must be a list"),
        ({"captions": [{"caption": "a"}]}, "Caption 0 must be a dict"),
        ({"captions": [{"caption": 3, "clip_embedding": 0}]}, "Caption 0 must be a dict"),
        ({"captions": [{"caption": "a", "clip_embedding": -1}]}, "of row -1"),
        ({"captions": [{"caption": "a", "clip_embedding": True}]}, "Caption 0 must be a dict"),
        ({"captions": ["a"]}, "Caption 0 must be a dict"),
    ],
)
def test_what_does_not_fit_is_told(
    change: dict[str, Any], told: str, written: Callable[..., str]
) -> None:
    with pytest.raises(SettingsError, match=told):
        oldpickles.read(written(data() | change))


def test_other_files_are_told_apart(written: Callable[..., str], tmp_path: Path) -> None:
    for content in (b"", b"{}", b"PK\x03\x04rest"):
        with pytest.raises(SettingsError, match="must be a pickle"):
            oldpickles.read(written(content))
    with pytest.raises(SettingsError, match="must be a dict of"):
        oldpickles.read(written([1, 2]))
    with pytest.raises(NotFoundError):
        oldpickles.read(str(tmp_path / "none.pkl"))
