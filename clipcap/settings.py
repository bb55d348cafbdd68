"""Base of everything a person may choose, and the digest that turns choices into a fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from clipcap import credentials


class Settings(BaseModel):
    """Frozen, no unknown fields; the docstring under a field is its help text everywhere.

    An address with a password or a signature in it is refused in every field (`SettingsError`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_secrets(cls, given: Any) -> Any:  # noqa: ANN401 - whatever is given
        credentials.refuse(given)
        return given

    def fingerprint(self) -> str:
        """Return the digest of every field."""
        return digest(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the one text that stands for a JSON value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the sha256, as hex, of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()
