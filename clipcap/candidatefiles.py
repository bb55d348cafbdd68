"""A file of candidate texts and an output in, what each image may choose from out.

Either all images have the same candidates (a `.txt` file with one a line, or a JSON list of texts),
or each its own, in any form that `clipcap.captionfiles` reads.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from clipcap import captionfiles, storage
from clipcap.errors import SettingsError
from clipcap.sample import caption_text

log = logging.getLogger(__name__)
_END: Final = re.compile(r"\r\n|\r|\n")
_OF_IMAGES: Final = re.compile(r"[^\t]+#\d+\t")  # Flickr8k.token.txt names an image in each line


@dataclass(frozen=True, slots=True)
class Candidates:
    """The texts that images may choose from, in the order of the file, each once."""

    same: tuple[str, ...] = ()
    """Of all images; empty where each has its own."""
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By `image_id`."""
    blank: int = 0
    """Candidates that say nothing: left out."""
    repeated: int = 0
    """Candidates that stand twice, of `same`: left out."""
    unmatched: int = 0
    """Candidates, of `own`, whose image the output does not have."""

    def of(self, image_id: str) -> Sequence[str]:
        """Return the candidates of an image; none where nobody gave it any."""
        return self.same or self.own.get(image_id, ())


def read(url: str, out: str) -> Candidates:
    """Return the candidates that a file holds for the live images of an output.

    Raises:
        SettingsError: the file holds no candidate, is of no known form or not UTF-8, or names no
            image of the output.
        NotFoundError: there is no such file.
    """
    texts = _same(storage.canonical(url))
    if texts is None:
        joined = captionfiles.join(url, out)
        return Candidates(own=joined.captions, blank=joined.blank, unmatched=joined.unmatched)
    spoken = [text for text in map(caption_text, texts) if text]
    found = tuple(dict.fromkeys(spoken))
    if not found:
        raise SettingsError(
            f"{url} must hold candidates to choose from, one a line, but holds none that says "
            "anything."
        )
    blank, repeated = len(texts) - len(spoken), len(spoken) - len(found)
    if blank + repeated:
        log.warning(
            "%s: %d candidates are blank, %d stand twice; %d are left",
            url, blank, repeated, len(found),
        )  # fmt: skip
    return Candidates(same=found, blank=blank, repeated=repeated)


def _same(url: str) -> list[str] | None:
    """Return the candidates of all images, or None where the file has some for each."""
    data = storage.read(url)
    lines = url.lower().endswith(".txt")
    if not lines and not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The candidates in {url} must be UTF-8, but byte {error.start} is none. If they are "
            f"Latin-1: `iconv -f latin1 -t utf-8 {url.rpartition('/')[2]}`."
        ) from error
    if lines:
        found = _END.split(text)
        first = next((line for line in found if line.strip()), "")
        return None if _OF_IMAGES.match(first) else found[: len(found) - (not found[-1])]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None  # what is wrong with it says who reads tables
    return value if all(isinstance(one, str) for one in value) else None
