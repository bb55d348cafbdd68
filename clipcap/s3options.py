"""The environment in, how buckets of S3 are asked out: as whom, at whose cost, how encrypted.

Nothing of it is a setting: it changes no result, and settings are stored where secrets must not be.
The names are those that object_store reads, the library behind obstore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from clipcap.errors import SettingsError

PROFILES: Final = "CLIPCAP_S3_PROFILES"
_PAYER: Final = "AWS_REQUEST_PAYER"
_ENCRYPTION: Final = "AWS_SERVER_SIDE_ENCRYPTION"
_KEY: Final = "AWS_SSE_KMS_KEY_ID"
_BUCKET_KEY: Final = "AWS_SSE_BUCKET_KEY_ENABLED"
_VIRTUAL: Final = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
ENVIRONMENT: Final = (PROFILES, _PAYER, _ENCRYPTION, _KEY, _BUCKET_KEY, _VIRTUAL)
_KINDS: Final = ("AES256", "aws:kms", "aws:kms:dsse")
_WORDS: Final = {
    **dict.fromkeys(("", "false", "0", "no"), False),
    **dict.fromkeys(("true", "1", "yes", "requester"), True),
}
_SSE: Final = "x-amz-server-side-encryption"


@dataclass(frozen=True, slots=True)
class Options:
    """How every bucket is asked."""

    is_virtual: bool | None = None
    """Whether the bucket is a part of the host name; None: as profile and endpoint have it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of every request."""
    put_headers: Mapping[str, str] = field(default_factory=dict)
    """Of a write, besides."""
    store: Mapping[str, Any] = field(default_factory=dict)
    """The same in obstore's words."""


def options() -> Options:
    """Return what the environment says.

    Raises:
        SettingsError: a variable has a value that it cannot have.
    """
    payer = _flag(_PAYER)
    kind, key = os.environ.get(_ENCRYPTION, ""), os.environ.get(_KEY, "")
    if kind and kind not in _KINDS:
        raise SettingsError(f"{_ENCRYPTION} must be one of {', '.join(_KINDS)}, but is {kind!r}.")
    if key and not kind.startswith("aws:"):
        raise SettingsError(f"{_KEY} needs {_ENCRYPTION}=aws:kms beside it.")
    put = {_SSE: kind} if kind else {}
    put |= {f"{_SSE}-aws-kms-key-id": key} if key else {}
    put |= {f"{_SSE}-bucket-key-enabled": "true"} if _flag(_BUCKET_KEY) else {}
    store = {
        "request_payer": payer,
        "server_side_encryption": kind,
        "sse_kms_key_id": key,
        "sse_bucket_key_enabled": _flag(_BUCKET_KEY),
    }
    return Options(
        is_virtual=_flag(_VIRTUAL) if os.environ.get(_VIRTUAL) else None,
        headers={"x-amz-request-payer": "requester"} if payer else {},
        put_headers=put,
        store={name: value for name, value in store.items() if value},
    )


def profile(bucket: str) -> str:
    """Return the profile that a bucket is asked with, or "" for the keys of everything else.

    Raises:
        SettingsError: `CLIPCAP_S3_PROFILES` is not a list of `bucket=profile`.
    """
    found: dict[str, str] = {}
    for pair in filter(None, re.split(r"[,\s]+", os.environ.get(PROFILES, ""))):
        name, is_pair, of = pair.partition("=")
        if not (name and is_pair and of):
            raise SettingsError(
                f"{PROFILES} must be like `photos=reader,results=writer`, a bucket and the profile "
                "to ask it with."
            )
        found[name] = of
    return found.get(bucket, "")


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in _WORDS:
        raise SettingsError(f"{name} must be true or false, but is {value!r}.")
    return _WORDS[value]
