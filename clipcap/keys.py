"""A source URI in, the names of its image out: `image_id` (the object) and `key` (the sample)."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from clipcap.errors import SettingsError

IMAGE_ID_LENGTH: Final = 32
KEY_FORM: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_STEM_LENGTH: Final = 40  # enough to recognise a file by; the tail makes the key unique
_TAIL_LENGTH: Final = 12  # 48 bits: one clash in 10,000 keys has a chance of 2e-7
_NAME_FORM: Final = re.compile(r"[A-Za-z0-9._-]{1,120}")


def image_id(source_uri: str) -> str:
    """Return the first 32 hex digits of the sha256 of the canonical source URI."""
    encoded = source_uri.encode("utf-8", "surrogatepass")
    return hashlib.sha256(encoded).hexdigest()[:IMAGE_ID_LENGTH]


def sample_key(source_uri: str) -> str:
    """Return a key that a person can recognise: the name's stem, then a piece of the image id.

    A dot would merge two samples in a tar, so all but letters, digits, `_` and `-` becomes `_`.
    """
    stem = re.split(r"[/#]", source_uri)[-1].partition(".")[0]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:_STEM_LENGTH].strip("_-")
    own = tail(image_id(source_uri))
    return f"{readable}-{own}" if readable else own


def tail(image_id: str) -> str:
    """Return what the key of an image ends with, and its `image_id` begins with."""
    return image_id[:_TAIL_LENGTH]


def key_tail(key: str) -> str:
    """Return what a key ends with."""
    return key[-_TAIL_LENGTH:]


def is_key(text: str) -> bool:
    """Tell whether `text` is a legal key."""
    return KEY_FORM.fullmatch(text) is not None


def path_name(text: str) -> str:
    """Return `text` as a name that may stand in a Hive path (`model=...`).

    Raises:
        SettingsError: nothing of `text` can be kept.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "__", text).strip("._-")
    if _NAME_FORM.fullmatch(name) is None:
        raise SettingsError(
            f"A name in a path must be 1 to 120 letters, digits, `.`, `_` or `-`, but is {text!r}."
        )
    return name
