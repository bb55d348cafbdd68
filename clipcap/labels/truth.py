"""A file of what people say is to be seen on images in, which labels each image has out, by name.

A table (Parquet, CSV, TSV, JSON, JSON lines) with a column that names the image and one of labels,
a JSON object of image to label, or COCO's annotations of objects. Several rows of an image, a list,
or `cat|dog` in a cell are several labels; an empty label says "none of these". The word `folder`
stands for a source that has a folder of images for each label. Images are known by the names that
files of captions use (`clipcap.imagenames`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final
from urllib.parse import unquote

from clipcap import captionfiles, storage
from clipcap.errors import SettingsError
from clipcap.imagenames import Names
from clipcap.labels.sets import LabelSet
from clipcap.settings import digest

log = logging.getLogger(__name__)

FOLDER: Final = "folder"
_LABELS: Final = ("label", "labels", "class", "class_name", captionfiles.KINDS, "categories")
_SHOWN: Final = 3
_EXAMPLE: Final = """A correct one is:
    image,label
    pets/one.jpg,cat
    pets/two.jpg,cat|dog
    pets/three.jpg,"""


@dataclass(slots=True)
class Named:
    """What a file says of the images of an output, in its own words."""

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By `image_id`, each label once; none: none of these."""
    missing: dict[str, None] = field(default_factory=dict)
    """Names of images that the output does not have."""
    repeated: int = 0
    """Rows that say again what another says."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Which labels of a label set the images of an output have."""

    image_ids: tuple[str, ...]
    labels_N: tuple[frozenset[int], ...]
    """Indices into `LabelSet.labels`; empty: none of these."""
    unknown_labels: Counter[str]
    """Labels that the set does not have, and how many images they were given to."""
    missing_images: int = 0
    """Images of the file that the output does not have."""
    left_out: int = 0
    """Images all of whose labels are unknown: nothing is said of them."""
    repeated: int = 0
    """Rows that say again what another says."""
    sha256: str = ""
    """Digest of all that is said of images of the output, in whatever form and order."""


def read(url: str, out: str, label_set: LabelSet) -> Truth:
    """Return the labels of a set that the live images of an output have; what is left out is told.

    Args:
        url: the file, or `folder`: the label is the name of the folder that an image lay in.
        out: the canonical URL of the output.
        label_set: a label is known by its name, else by its name whatever the case and spaces,
            else by its text or a synonym, if no other label has it.

    Raises:
        SettingsError: the file is of no known form or not UTF-8, a file name is of several images,
            or no label or no image is known.
        NotFoundError: there is no such file.
    """
    return of(named(url, out), label_set, origin=url)


def named(url: str, out: str) -> Named:
    """Return what a file says of the live images of an output, in its own words.

    Raises:
        SettingsError: as of `read`, but for the labels.
        NotFoundError: there is no such file.
    """
    names = Names(out)
    if url == FOLDER:
        folders = {one: _folder(address) for one, address in names.addresses.items()}
        return Named({one: (name,) for one, name in folders.items()})
    found, spelt = Named(), dict[str, str]()
    for name, given in _cells(url):
        image_id = names.find(name)
        if image_id is None:
            found.missing[name] = None
            continue
        _require_same(name, spelt.setdefault(image_id, name), names, image_id)
        had = found.labels.get(image_id)
        labels = tuple(dict.fromkeys([*(had or ()), *_listed(given)]))
        found.repeated += labels == had
        found.labels[image_id] = labels
    if not found.labels:
        first = next(iter(found.missing), "")
        raise SettingsError(
            f"The labels in {url} must be of images of {out}, but none is "
            f"({f'the first is of {first!r}' if first else 'it holds none'}; the output has "
            f"{names.example!r}). An image is named by its key, its address, its path below the "
            f"source or its file name. {_EXAMPLE}"
        )
    if found.missing or found.repeated:
        log.warning(
            "%s: %d images are not in the output%s; %d rows say again what another says",
            url, len(found.missing), _such_as(found.missing), found.repeated,
        )  # fmt: skip
    return found


def of(found: Named, label_set: LabelSet, *, origin: str) -> Truth:
    """Return words as labels of a set; arguments and errors as of `read`."""
    known = _Known(label_set)
    unknown: Counter[str] = Counter()
    same: dict[frozenset[int], frozenset[int]] = {}  # a million images have few different ones
    image_ids, labels = [], []
    for image_id, words in found.labels.items():
        indices = [known.index(word) for word in words]
        unknown.update(word for word, index in zip(words, indices, strict=True) if index is None)
        held = frozenset(index for index in indices if index is not None)
        if held or not words:
            image_ids.append(image_id)
            labels.append(same.setdefault(held, held))
    if unknown and not any(labels):
        raise SettingsError(_nothing_known(unknown, label_set, origin))
    left_out = len(found.labels) - len(image_ids)
    if unknown:
        often = [name for name, _ in unknown.most_common(_SHOWN)]
        log.warning(
            "%s: the label set %s lacks %d labels%s; %d images have no other, and are left out",
            origin, label_set.name, len(unknown), _such_as(often), left_out,
        )  # fmt: skip
    names = label_set.names
    said = sorted(zip(image_ids, (sorted(names[i] for i in one) for one in labels), strict=True))
    return Truth(
        image_ids=tuple(image_ids),
        labels_N=tuple(labels),
        unknown_labels=unknown,
        missing_images=len(found.missing),
        left_out=left_out,
        repeated=found.repeated,
        sha256=digest(["truth", *said]),
    )


class _Known:
    """What the labels of a set are called."""

    def __init__(self, label_set: LabelSet) -> None:
        labels = list(enumerate(label_set.labels))
        self._exact = {one.name: index for index, one in labels}
        self._folded = _unambiguous((_folded(one.name), index) for index, one in labels)
        self._synonyms = _unambiguous(
            (_folded(word), index) for index, one in labels for word in one.words
        )

    def index(self, word: str) -> int | None:
        """Return which label a word means; a name goes before a synonym of another label."""
        if (exact := self._exact.get(word)) is not None:
            return exact
        folded = _folded(word)
        return self._folded.get(folded, self._synonyms.get(folded))


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return which label a word means, of words that mean one."""
    found: dict[str, set[int]] = {}
    for word, index in pairs:
        found.setdefault(word, set()).add(index)
    return {word: next(iter(held)) for word, held in found.items() if len(held) == 1}


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _cells(url: str) -> list[tuple[str, object]]:
    """Return the cells of a file with the names of their images."""
    data = storage.read(storage.canonical(url))
    try:
        cells = captionfiles.parsed(data, _LABELS)
        return [(one if isinstance(one, str) else one[0], given) for one, given in cells]
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The labels in {url} must be UTF-8, but byte {error.start} is none. If they are "
            f"Latin-1: `iconv -f latin1 -t utf-8 {url.rpartition('/')[2]}`."
        ) from error
    except captionfiles.MALFORMED as error:
        raise SettingsError(
            f"The labels in {url} must be a table (Parquet, CSV, TSV, JSON) with a column that "
            f"names the image ({', '.join(captionfiles.NAMES[:_SHOWN])}, image ...) and one of "
            f"labels ({', '.join(_LABELS[:_SHOWN])} ...), but: {error}. {_EXAMPLE}"
        ) from error


def _listed(given: object) -> list[str]:
    """Return the labels in a cell: one, several with bars between, or a list."""
    cells = given if isinstance(given, list) else str("" if given is None else given).split("|")
    texts = ("" if cell is None else str(cell).strip() for cell in cells)
    return [text for text in texts if text]


def _require_same(name: str, first: str, names: Names, image_id: str) -> None:
    """Do nothing where two names can be those of one image.

    Raises:
        SettingsError: they are files of one name in two folders, and at most one of them is here.
    """
    if name == first or name.rpartition("/")[2] != first.rpartition("/")[2]:
        return
    if not f"/{name}".endswith(f"/{first}") and not f"/{first}".endswith(f"/{name}"):
        raise SettingsError(
            f"A name must be that of one image, but {first!r} and {name!r} are of one file name, "
            f"which only {names.addresses[image_id]} has. Name the images by address."
        )


def _folder(address: str) -> str:
    """Return the folder that an image lay in; that of a tar or zip is within it."""
    path = address.partition("#")[2] or address
    return unquote(path.rpartition("/")[0].rpartition("/")[2])


def _such_as(names: Iterable[str] | Mapping[str, object]) -> str:
    shown = [repr(name[:80]) for name, _ in zip(names, range(_SHOWN), strict=False)]
    return f" ({', '.join(shown)} ...)" if shown else ""


def _nothing_known(unknown: Counter[str], label_set: LabelSet, origin: str) -> str:
    often = unknown.most_common(1)[0][0]
    near = get_close_matches(often, label_set.names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(label_set.names[:_SHOWN])
    return (
        f"The labels in {origin} must be of the label set {label_set.name} ({known} ...), but none "
        f"of {len(unknown)} is: {_such_as(unknown).strip(' ()')}{hint}"
    )
