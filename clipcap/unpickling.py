"""The bytes of a pickle in, plain values out; nothing in it is ever run.

An interpreter of its own for the few instructions that `pickle.dump` writes of numbers, texts,
bytes, lists, dicts and calls. Python's `pickle` is not used: even with a restricted `find_class` a
file of ten bytes can have it fill 64 GB (the index of a memo) or hash for years (nested tuples as
keys). Here keys are texts, a size is no more than is left, and a name is only handed to `Reader`.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from clipcap.errors import SettingsError

MAX_VALUES: Final = 2**26
"""Containers and remembered values of a file; four for each of the original's captions."""
_LAST_PROTOCOL: Final = 5


@dataclass(frozen=True, slots=True)
class Bytes:
    """Where bytes stand in the data; not copied."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Name:
    """`module.name` of a function or a class; never imported."""

    text: str


class Refused(Exception):  # noqa: N818 - what happened to a part of the file
    """A reader does not take what the pickle asks for; says what that is."""


class Reader(Protocol):
    """What a pickle may hold beside plain values."""

    names: frozenset[str]
    """Functions and classes that it may name."""

    def call(self, name: str, arguments: tuple[Any, ...]) -> object:
        """Return what stands for a call of a name; `Refused` for what is not known."""

    def stored(self, description: Any) -> object:  # noqa: ANN401 - whatever the file says
        """Return what stands for an object outside of the pickle; `Refused` likewise."""


class _Mark:
    """Begins a list of operands on the stack."""


def load(
    data: bytearray, reader: Reader, begin: int = 0, end: int | None = None
) -> tuple[Any, int]:
    """Return the value of the pickle that begins at `begin`, and where it ends.

    Raises:
        SettingsError: it is no pickle, it is cut off, or it holds anything but plain values and
            what the reader takes; names what.
    """
    return _Machine(data, reader, begin, len(data) if end is None else end).run()


_Step = Callable[["_Machine"], None]


class _Machine:
    """Runs one pickle that lies in `data[begin:end]`."""

    def __init__(self, data: bytearray, reader: Reader, begin: int, end: int) -> None:
        self.data = data
        self.reader = reader
        self.at = begin
        self.end = end
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.values = 0

    def run(self) -> tuple[Any, int]:
        """Return the value, and where the pickle ends."""
        try:
            while (code := self.byte()) != _STOP:
                _STEPS.get(code, _unknown)(self)
            (value,) = self.stack
        except Refused as error:
            raise SettingsError(
                f"The pickle holds {error} (near byte {self.at}). It was not run: only numbers, "
                "texts, lists, dicts and torch tensors are read."
            ) from None
        except (IndexError, KeyError, ValueError) as error:
            raise SettingsError(
                f"The pickle is damaged near byte {self.at} ({type(error).__name__})."
            ) from error
        return value, self.at

    def take(self, count: int) -> int:
        """Step over `count` bytes; return where they began."""
        begin = self.at
        if count > self.end - begin:
            raise SettingsError(
                f"The pickle is cut off: byte {begin} asks for {count} more bytes, "
                f"but {self.end - begin} follow."
            )
        self.at = begin + count
        return begin

    def skip(self, count: int) -> None:
        self.take(count)

    def byte(self) -> int:
        return self.data[self.take(1)]

    def number(self, form: struct.Struct) -> Any:  # noqa: ANN401 - an int or a float
        (value,) = form.unpack_from(self.data, self.take(form.size))
        return value

    def text(self, count: int) -> str:
        begin = self.take(count)
        return self.data[begin : self.at].decode()

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.end)
        return self.text(end + 1 - self.at)[:-1]

    def push(self, value: object) -> None:
        self.count()
        self.stack.append(value)

    def count(self) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise SettingsError(f"The pickle holds more than {MAX_VALUES} values.")

    def operands(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        place = len(self.stack) - 1
        while self.stack[place] is not _Mark:  # an IndexError where there is none
            place -= 1
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def remember(self, index: int) -> None:
        self.count()
        self.memo[index] = self.stack[-1]

    def find(self, module: object, name: object) -> None:
        found = Name(f"{module}.{name}")
        if found.text not in self.reader.names:
            raise Refused(f"the name {found.text[:200]!r}")
        self.stack.append(found)

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise Refused("a call of something that is not a name")
        self.push(self.reader.call(name.text, arguments))

    def stored(self) -> None:
        self.push(self.reader.stored(self.stack.pop()))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not all(type(key) is str for key in items[::2]):
            raise Refused("a dict with keys that are not texts")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused("a list that is none")
        self.stack[-1].extend(items)


def _tuple(count: int) -> _Step:
    def step(machine: _Machine) -> None:
        found = tuple(machine.stack[-count:])
        if len(found) != count:
            raise IndexError
        del machine.stack[-count:]
        machine.push(found)

    return step


def _number(form: str) -> _Step:
    parsed = struct.Struct(form)
    return lambda machine: machine.stack.append(machine.number(parsed))


def _text(form: str) -> _Step:
    parsed = struct.Struct(form)
    return lambda machine: machine.push(machine.text(machine.number(parsed)))


def _bytes(form: str) -> _Step:
    parsed = struct.Struct(form)

    def step(machine: _Machine) -> None:
        begin = machine.take(machine.number(parsed))
        machine.push(Bytes(begin, machine.at))

    return step


def _get(form: str) -> _Step:
    parsed = struct.Struct(form)
    return lambda machine: machine.stack.append(machine.memo[machine.number(parsed)])


def _put(form: str) -> _Step:
    parsed = struct.Struct(form)
    return lambda machine: machine.remember(machine.number(parsed))


def _unknown(machine: _Machine) -> None:
    code = chr(machine.data[machine.at - 1])
    names = {known.code: known.name for known in pickletools.opcodes}
    raise Refused(f"the instruction {names.get(code, repr(code))}")


def _instance(machine: _Machine) -> None:
    machine.find(machine.line(), machine.line())
    raise Refused("an object of a class")


def _protocol(machine: _Machine) -> None:
    if machine.byte() > _LAST_PROTOCOL:
        raise Refused("a newer form of pickle")


def _long(machine: _Machine) -> None:
    begin = machine.take(machine.byte())
    machine.stack.append(int.from_bytes(machine.data[begin : machine.at], "little", signed=True))


def _named(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.find(module, name)


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


_WRITTEN: Final[dict[bytes, _Step]] = {
    b"\x80": _protocol,
    b"\x95": lambda machine: machine.skip(8),  # a frame: how much a reader may fetch at once
    b"N": lambda machine: machine.stack.append(None),
    b"\x88": lambda machine: machine.stack.append(True),
    b"\x89": lambda machine: machine.stack.append(False),
    b"J": _number("<i"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"G": _number(">d"),
    b"\x8a": _long,
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"\x8d": _text("<Q"),
    b"B": _bytes("<I"),
    b"C": _bytes("<B"),
    b"\x8e": _bytes("<Q"),
    b"(": lambda machine: machine.stack.append(_Mark),
    b"}": lambda machine: machine.push({}),
    b"]": lambda machine: machine.push([]),
    b")": lambda machine: machine.push(()),
    b"t": lambda machine: machine.push(tuple(machine.operands())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"s": _set_item,
    b"u": lambda machine: machine.set_items(machine.operands()),
    b"a": lambda machine: machine.append([machine.stack.pop()]),
    b"e": lambda machine: machine.append(machine.operands()),
    b"h": _get("<B"),
    b"j": _get("<I"),
    b"q": _put("<B"),
    b"r": _put("<I"),
    b"\x94": lambda machine: machine.remember(len(machine.memo)),
    b"c": lambda machine: machine.find(machine.line(), machine.line()),
    b"\x93": _named,
    b"i": _instance,
    b"R": lambda machine: machine.reduce(),
    b"Q": lambda machine: machine.stored(),
}
_STEPS: Final = {code[0]: step for code, step in _WRITTEN.items()}
_STOP: Final = b"."[0]
