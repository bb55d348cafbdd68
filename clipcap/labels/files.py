"""The bytes of a TOML or JSON file in, what it holds and the line of each value out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value: `("names", 3, "parent")`."""
MOST_BYTES: Final = 64 << 20
"""A larger file is not read; a set of the most labels with templates of their own has a fourth."""

_TOKEN: Final = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|\'{3}.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\''''
    r"""|\#[^\n]*|[\[\]{},=:]|[^\s"'\#\[\]{},=:]+""",
    re.DOTALL,
)
_AT: Final = re.compile(r"line (\d+)")
_DEEP: Final = 20  # parts of a key of TOML, `a.b.c`; its reader keeps every beginning of a key
_SEPARATORS: Final = ("=", ":")
_MARKS: Final = frozenset("[]{},=:")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What must be otherwise, and where."""

    line: int
    text: str

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Written:
    """What a file holds, and its text."""

    found: dict[str, Any]
    text: str
    is_json: bool
    has_doubled_keys: bool = False

    def line(self, path: Path) -> int:
        """Return the line of a value, or of what holds it where it stands nowhere."""
        while path and path not in self._scan.lines:
            path = path[:-1]
        return self._scan.lines.get(path, 1)

    def doubled(self) -> list[Problem]:
        """Return the keys that an object of JSON has twice: readers silently take the last."""
        again = self._scan.doubled if self.has_doubled_keys else []
        return [Problem(line, f"the key `{path[-1]}` stands twice") for path, line in again]

    @cached_property
    def _scan(self) -> _Scan:
        return _Scan(self.text, is_json=self.is_json)


def parsed(data: bytes, *, is_json: bool) -> Written | Problem:
    """Return what a file holds, or why it cannot be read."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Problem(line, f"the byte {data[error.start]:#04x} is no UTF-8: save it as UTF-8")
    if "\0" in text:
        return Problem(text.count("\n", 0, text.index("\0")) + 1, "there is a NUL character")
    doubled: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            doubled.append("")
        return made

    try:
        found = json.loads(text, object_pairs_hook=as_dict) if is_json else of_toml(text)
    except RecursionError:
        return Problem(1, "it is nested too deeply")
    except ValueError as error:
        at = _AT.search(str(error))
        line = int(at[1]) if at else text.count("\n") + 1  # tomllib: "at end of document"
        return Problem(line, f"it cannot be read: {error}")
    if not isinstance(found, dict):
        return Problem(1, f"it must hold an object, but is a {type(found).__name__}")
    return Written(found, text, is_json, has_doubled_keys=bool(doubled))


def of_toml(text: str) -> dict[str, Any]:
    """Return what TOML holds.

    Raises:
        RecursionError: it is nested too deeply.
        ValueError: it is no TOML.
    """
    if _has_deep_key(text):
        raise RecursionError
    return tomllib.loads(text)


def _has_deep_key(text: str) -> bool:
    """Tell whether a key has more parts than any file needs; texts and remarks are no keys."""
    if all(line.count(".") <= _DEEP for line in text.splitlines()):
        return False
    dots = 0
    for token, _ in _tokens(text):
        if token in _MARKS:
            dots = 0
        elif token[0] not in "\"'" and (dots := dots + token.count(".")) > _DEEP:
            return True
    return False


class _Scan:
    """Walks the marks of a text that a parser has accepted, and notes the line of every value."""

    def __init__(self, text: str, *, is_json: bool) -> None:
        self.lines: dict[Path, int] = {}
        self.doubled: list[tuple[Path, int]] = []
        self._last: dict[Path, int] = {}  # of each array of tables, the index of its last
        self._tokens = list(_tokens(text))
        self._at = 0
        with suppress(RecursionError):  # what lies so deep is told with the line of its holder
            self._walk(is_json=is_json)

    def _walk(self, *, is_json: bool) -> None:
        if is_json:
            self._value(())
            return
        while self._at < len(self._tokens):
            self._tables()

    def _tables(self) -> None:
        """Read a header and what stands below it, up to the next."""
        base: Path = ()
        if self._is("["):
            self._at += 1
            is_array = self._is("[")
            self._at += is_array
            base = self._header(is_array=is_array)
            self._at += 1 + is_array
        while self._at < len(self._tokens) and not self._is("["):
            self._pair(base)

    def _header(self, *, is_array: bool) -> Path:
        line, path = self._tokens[self._at][1], self._key(("]",))
        base: Path = ()
        for n, part in enumerate(path):
            base = (*base, part)
            self.lines.setdefault(base, line)
            if is_array and n == len(path) - 1:
                self._last[base] = self._last.get(base, -1) + 1
            if base in self._last:
                base = (*base, self._last[base])
        self.lines[base] = line
        return base

    def _pair(self, base: Path) -> None:
        line = self._tokens[self._at][1]
        path = (*base, *self._key(_SEPARATORS))
        for length in range(len(base) + 1, len(path)):
            self.lines.setdefault(path[:length], line)
        self._at += 1
        if path in self.lines:
            self.doubled.append((path, line))
        self._value(path)

    def _key(self, ends: tuple[str, ...]) -> Path:
        parts: list[str] = []
        while not self._is(*ends):
            token = self._tokens[self._at][0]
            quoted = token[0] in "\"'"
            parts += [_unquoted(token)] if quoted else [one for one in token.split(".") if one]
            self._at += 1
        return tuple(parts)

    def _value(self, path: Path) -> None:
        token, line = self._tokens[self._at]
        self.lines[path] = line
        self._at += 1
        if token == "[":
            self._items(path)
        elif token == "{":
            while not self._is("}"):
                self._pair(path)
                self._at += self._is(",")
            self._at += 1
        elif token[0] not in "\"'":
            while self._at < len(self._tokens) and self._goes_on(line):
                self._at += 1  # a date, a time, `1.5`

    def _goes_on(self, line: int) -> bool:
        token, its_line = self._tokens[self._at]
        return its_line == line and token not in ("[", "]", "{", "}", ",")

    def _items(self, path: Path) -> None:
        count = 0
        while not self._is("]"):
            self._value((*path, count))
            self._at += self._is(",")
            count += 1
        self._at += 1

    def _is(self, *marks: str) -> bool:
        return self._tokens[self._at][0] in marks


def _unquoted(token: str) -> str:
    if token.startswith("'"):
        return token[1:-1]
    try:
        return str(json.loads(token))
    except ValueError:  # an escape that only TOML has
        return token[1:-1]


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Yield every mark, text and bare word with its line."""
    line, before = 1, 0
    for found in _TOKEN.finditer(text):
        start = found.start()
        line += text.count("\n", before, start)
        before = start
        token = found[0]
        if token[0] != "#":
            yield token, line
