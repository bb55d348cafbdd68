"""Names of images, and whatever an output holds, in; whether it says any of them, and where, out.

A name is an `image_id`, a key, a source URI or the sha256 of the bytes. Tables are looked at cell
by cell, tars member by member, JSON string by string, pages as a reader sees them.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipcap import keys, shards, storage
from clipcap.forgotten import Image

_TAIL: Final = 12  # hex digits that an image_id begins, and a key ends, with
_HEX: Final = re.compile(rf"[0-9a-f]{{{_TAIL},}}")
_GOES_ON: Final = re.compile(r"[\w%/~+=&@#-]|[.?]\w")
_BELOW: Final = re.compile(r"[^\s\"'<>*?,;]+")
_NAMES: Final = ("source_uri", "url", "source", "output_uri", "report_uri")
"""Columns that hold one name each: there `a.png` is not said by `a.png 2.png`."""
_TEXTS: Final = ("txt", "json")
_LONGEST: Final = 8_192  # bytes of a name
_SAYING: Final = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_map,
)

_LISTS: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class Needles:
    """The names of some images, and beginnings of URIs, to be looked for."""

    def __init__(self, images: Iterable[Image], prefixes: Collection[str] = ()) -> None:
        images = list(images)
        self.contents = frozenset(one.content_sha256 for one in images if one.content_sha256)
        self.uris = frozenset(one.source_uri for one in images if one.source_uri)
        self.files = frozenset(unquote(uri).rpartition("/")[2] for uri in self.uris)
        self.prefixes = tuple(prefixes)
        self._keys = frozenset(one.key for one in images if one.key)
        self._nameless = frozenset(keys.tail(one.image_id) for one in images if not one.key)
        self._by_tail: dict[str, list[tuple[str, str | None]]] = {}
        for one in images:
            self._by_tail.setdefault(keys.tail(one.image_id), []).append(
                (one.image_id, one.key or None)
            )
        for content in self.contents:
            self._by_tail.setdefault(content[:_TAIL], []).append((content, ""))
        self._lengths: dict[str, set[int]] = {}
        self._forms = {form for uri in self.uris for form in _forms(uri)}
        for form in (*self._forms, *self.prefixes):
            self._lengths.setdefault(_head(form), set())
        for form in self._forms:
            self._lengths[_head(form)].add(len(form))

    def __bool__(self) -> bool:
        """Tell whether there is anything to look for."""
        return bool(self._by_tail or self.prefixes)

    def is_key(self, key: str) -> bool:
        """Tell whether a sample's key is that of one of the images."""
        return key in self._keys or keys.key_tail(key) in self._nameless

    def is_named(self, uri: str) -> bool:
        """Tell whether a source URI is that of one of the images."""
        return uri in self.uris or (uri.startswith(self.prefixes) and uri not in self.prefixes)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the places of a text that say a name, from and to."""
        for run in _HEX.finditer(text):
            for at in range(run.start(), run.end() - _TAIL + 1):
                yield from self._hashes(text, at)
        for head, lengths in self._lengths.items():
            for found in re.finditer(re.escape(head), text):
                yield from self._uris(text, found.start(), lengths)

    def _hashes(self, text: str, at: int) -> Iterator[tuple[int, int]]:
        end = at + _TAIL
        for name, key in self._by_tail.get(text[at:end], ()):
            if text.startswith(name, at):
                yield at, at + len(name)
            elif key and text.endswith(key, 0, end):
                yield end - len(key), end
            elif key is None and text.endswith("-", 0, at):
                yield at, end

    def _uris(self, text: str, at: int, lengths: Iterable[int]) -> Iterator[tuple[int, int]]:
        for length in lengths:
            end = at + length
            if text[at:end] in self._forms and not _GOES_ON.match(text, end):
                yield at, end
        for prefix in self.prefixes:
            end = at + len(prefix)
            if text.startswith(prefix, at) and (below := _BELOW.match(text, end)):
                yield at, below.end()

    def in_text(self, text: str) -> bool:
        """Tell whether a text says a name."""
        return next(self.spans(text), None) is not None

    def without(self, text: str) -> str:
        """Return a text with `[forgotten]` in the place of every name."""
        parts, last = [], 0
        for start, end in sorted(self.spans(text)):
            if start >= last:
                parts += [text[last:start], "[forgotten]"]
            last = max(last, end)
        return "".join([*parts, text[last:]])


def _forms(uri: str) -> set[str]:
    """Return how a URI may be written in a text: as it is, decoded, as a path."""
    path = storage.local_path(uri) if uri.startswith("file://") else None
    is_quoted = path is not None or "#" in uri  # keys of a bucket stand as they are
    return {uri, *([unquote(uri)] if is_quoted else []), *([str(path)] if path else [])}


def _head(uri: str) -> str:
    """Return where to look for a URI: all up to its first folder."""
    scheme = uri.find("://")
    start = scheme + 3 if scheme >= 0 else 1
    return uri[: uri.find("/", start) + 1] or uri


def in_value(value: object, needles: Needles, name: str = "") -> bool:
    """Tell whether a cell, or anything in it, says a name; `name` is that of its column."""
    if isinstance(value, str):
        return needles.is_named(value) if name in _NAMES else needles.in_text(value)
    if isinstance(value, bytes):
        return needles.in_text(value.hex()) or needles.in_text(value.decode("latin-1"))
    if isinstance(value, UUID):
        return needles.in_text(value.hex)
    if isinstance(value, dict):
        return any(
            in_value(one, needles, str(key)) or needles.in_text(str(key))
            for key, one in value.items()
        )
    if isinstance(value, list | tuple):
        return any(in_value(one, needles, name) for one in value)
    return False


def rows(table: pa.Table, needles: Needles) -> NDArray[np.bool_]:
    """Return for each row whether it says a name."""
    said = np.zeros(table.num_rows, dtype=bool)
    for name in table.column_names:
        if any(_in_leaf(leaf, of, needles) for of, leaf in _leaves(name, table[name])):
            cells = table[name].to_pylist()
            said |= np.fromiter((in_value(cell, needles, name) for cell in cells), bool)
    return said


def _leaves(name: str, column: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any Arrow array
    """Yield the arrays of text and bytes that a column is made of, with their names."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        chunks = [chunk.storage for chunk in column.chunks]
        yield from _leaves(name, pa.chunked_array(chunks, kind.storage_type))
    elif pa.types.is_dictionary(kind):
        yield from _leaves(name, column.cast(kind.value_type))
    elif any(is_kind(kind) for is_kind in _LISTS):
        yield from _leaves(name, pc.list_flatten(column))
    elif pa.types.is_struct(kind):
        for number, field in enumerate(kind):
            yield from _leaves(field.name, pc.struct_field(column, [number]))
    elif any(is_kind(kind) for is_kind in _SAYING):
        yield name, column


def _in_leaf(column: Any, name: str, needles: Needles) -> bool:  # noqa: ANN401 - any Arrow array
    """Tell whether any value says a name; all of a column of text are looked at as one text."""
    values = (column if pa.types.is_map(column.type) else pc.unique(column)).to_pylist()
    if name in _NAMES or not values or not isinstance(values[0] or "", str):
        return any(in_value(value, needles, name) for value in values)
    return needles.in_text("\n".join(value for value in values if value is not None))


def in_parquet(data: bytes, needles: Needles) -> bool:
    """Tell whether a Parquet file says a name, in its rows or its footer.

    Raises:
        pyarrow.ArrowException: it is no Parquet file.
    """
    schema = pq.read_schema(pa.BufferReader(data))
    columns = [field.name for field in schema if _may_say(field.type)]
    table = pq.read_table(pa.BufferReader(data), columns=columns)
    return bool(rows(table, needles).any()) or in_footer(data, needles)


def _may_say(kind: pa.DataType) -> bool:
    """Tell whether values of a type can be a name; numbers, as in vectors, cannot."""
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return _may_say(kind.value_type)
    return not (pa.types.is_primitive(kind) or pa.types.is_null(kind))


def in_footer(data: bytes, needles: Needles) -> bool:
    """Tell whether the footer of a Parquet file says a name."""
    footer = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    texts = [text.decode("utf-8", "replace") for k, text in footer.items() if k != b"ARROW:schema"]
    return any(in_value(text, needles, "") for text in texts)


def dead(tar: bytes, needles: Needles, live: Collection[str] | None = None) -> list[shards.Member]:
    """Return the files of a tar that are of the images, or have their bytes.

    `live`: the keys that count; what lies in the tar beside them is meant too, whatever it is.

    Raises:
        SettingsError: the tar is not one of ours.
    """
    found = [one for one in shards.members(tar) if not shards.is_emptied(one)]
    same = {
        _key(one.name)
        for one in found
        if needles.contents
        and hashlib.sha256(memoryview(tar)[one.offset : one.offset + one.length]).hexdigest()
        in needles.contents
    }

    def is_dead(key: str) -> bool:
        return key in same or needles.is_key(key) or (live is not None and key not in live)

    return [one for one in found if is_dead(_key(one.name))]


def _key(name: str) -> str:
    return name.partition(".")[0]


def in_tar(tar: bytes, needles: Needles, live: Collection[str] | None = None) -> bool:
    """Tell whether a tar holds a `dead` file, or a text that says a name.

    Raises:
        SettingsError: the tar is not one of ours.
    """
    if dead(tar, needles, live):
        return True
    texts = [one for one in shards.members(tar) if one.name.rpartition(".")[2] in _TEXTS]
    return any(
        in_document(one.name, tar[one.offset : one.offset + one.length], needles) for one in texts
    )


def in_document(name: str, data: bytes, needles: Needles) -> bool:
    """Tell whether a page, JSON or any other file says a name, or is one of the images."""
    if name.endswith(".html"):
        page = html.unescape(data.decode("utf-8", "replace"))
        is_night = "/reports/" in name  # those say the whole URI of what they show
        return needles.in_text(page) or (not is_night and _shows(page, needles))
    if name.endswith(".json"):
        try:
            if in_value(json.loads(data), needles):
                return True
        except ValueError:
            pass
    return in_stream([data], needles)


def in_stream(chunks: Iterable[bytes], needles: Needles) -> bool:
    """Tell whether a file of any size says a name, or is one of the images."""
    whole, last = hashlib.sha256(), b""
    for chunk in chunks:
        whole.update(chunk)
        part = last + chunk
        if needles.in_text(part.decode("utf-8", "replace")):
            return True
        last = part[-_LONGEST:]
    return whole.hexdigest() in needles.contents


def _shows(page: str, needles: Needles) -> bool:
    """Tell whether a page with pictures calls one by its file name alone."""
    if "data:image/" not in page:
        return False
    bare = re.sub(r"data:image/[^\"']*", "", page)
    names = (file for file in needles.files if file in bare)
    return any(re.search(rf"(?<![\w.-]){re.escape(one)}(?![\w.-])", bare) for one in names)
