"""The bytes of a pickle in, plain values and torch tensors out; nothing in it is ever run.

A tensor that was pickled without `torch.save` is a call of a function that reads a file of
`torch.save` out of bytes. Both are read here by what they mean; torch's own reader is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from clipcap import unpickling
from clipcap.errors import SettingsError
from clipcap.unpickling import Bytes, Name, Refused

_TENSOR: Final = "torch._utils._rebuild_tensor_v2"
_STORAGE: Final = "torch.storage._load_from_bytes"
_HOOKS: Final = "collections.OrderedDict"  # of a tensor: always empty
_DTYPES: Final = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
}
_MAGIC: Final = 0x1950A86A20F9469CFC6C  # of `torch.save` in the form it had before torch 1.6
_VERSION: Final = 1001
_COUNT_BYTES: Final = 8
_MAX_AXES: Final = 8


def loads(data: bytearray) -> Any:  # noqa: ANN401 - any plain value
    """Return what a pickle holds; its tensors look into `data`, which is not copied.

    Raises:
        SettingsError: it is no pickle, it is cut off, or it holds anything but plain values and
            dense tensors; names what.
    """
    value, end = unpickling.load(data, _Tensors(data))
    if end != len(data):
        raise SettingsError(f"The pickle ends at byte {end}, but {len(data) - end} bytes follow.")
    return value


@dataclass(frozen=True, slots=True)
class _Stored:
    """A storage whose numbers stand behind its description."""

    key: str
    dtype: torch.dtype
    count: int


class _Tensors:
    """Takes tensors."""

    names = frozenset((_TENSOR, _STORAGE, _HOOKS))

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.storages: dict[Bytes, Tensor] = {}

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        """Return a tensor, a storage (as a flat tensor), or None for hooks."""
        if name == _TENSOR and len(arguments) in (6, 7):
            return _tensor(*arguments)
        if name == _STORAGE and len(arguments) == 1 and type(arguments[0]) is Bytes:
            (place,) = arguments
            if place not in self.storages:  # else a file could have it read a million times
                self.storages[place] = _storage(self.data, place)
            return self.storages[place]
        if name == _HOOKS and not arguments:
            return None
        raise Refused(f"a call of {name} with unknown arguments")

    def stored(self, description: Any) -> object:  # noqa: ANN401 - as in `Reader`
        """Refuse: a plain pickle is all there is."""
        raise Refused("a reference to an object outside of it")


class _Storages:
    """Takes the description of a storage."""

    names = frozenset(_DTYPES)

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        """Refuse: a description calls nothing."""
        raise Refused(f"a call of {name}")

    def stored(self, description: Any) -> object:  # noqa: ANN401 - whatever the file says
        """Return a storage by `("storage", class, key, device, count, view)`."""
        match description:
            case ("storage", Name(text=kind), str(key), str(), int(count), None) if count >= 0:
                return _Stored(key, _DTYPES[kind], count)
        raise Refused("a storage of an unknown form")


def _storage(data: bytearray, place: Bytes) -> Tensor:
    """Return the numbers of a storage that `torch.save` wrote in the form it had before torch 1.6.

    Five pickles (a magic number, a version, the machine it was, the storage's description, the
    list of its key), then the count and the numbers.
    """
    at = place.begin
    found = []
    for _ in range(5):
        value, at = unpickling.load(data, _Storages(), at, place.end)
        found.append(value)
    magic, version, machine, stored, keys = found
    if (magic, version) != (_MAGIC, _VERSION) or type(stored) is not _Stored:
        raise Refused("a tensor whose numbers are in an unknown form")
    little = type(machine) is dict and machine.get("little_endian") is True
    size_bytes = _COUNT_BYTES + stored.count * stored.dtype.itemsize
    if not little or keys != [stored.key] or size_bytes != place.end - at:
        raise Refused(f"a tensor of {stored.count} numbers whose bytes are not as many")
    if not stored.count:
        return torch.empty(0, dtype=stored.dtype)
    begin = at + _COUNT_BYTES
    return torch.frombuffer(data, dtype=stored.dtype, count=stored.count, offset=begin)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:  # noqa: ANN401 - whatever the file says
    """Return a view of a storage, checked to lie within it and to be no larger."""
    shaped = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= _MAX_AXES
    if not isinstance(storage, Tensor) or not shaped or not _are_counts(offset, *size, *stride):
        raise Refused("a tensor of an unknown form")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last >= storage.numel() or count > storage.numel()):
        raise Refused(f"a tensor of shape {size} that is not within its {storage.numel()} numbers")
    return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)


def _are_counts(*values: object) -> bool:
    return all(type(value) is int and 0 <= value < 2**48 for value in values)
