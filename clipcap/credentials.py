"""Any value in, a refusal out if an address in it carries a password, a key or a signature.

What is given to a flow is stored by Prefect, shown on its pages and written into the `runs` table;
what is given as a setting lies in footers and cards. So nothing secret may be given at all, and no
refusal repeats what it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from clipcap.errors import SettingsError

REFUSAL: Final = (
    "A URL must not carry credentials or a signature; set them in the environment instead "
    "(for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)."
)
_NAMES: Final = (
    r"sig|signature|[\w-]+-(?:signature|credential)|awsaccesskeyid|googleaccessid|key-pair-id|"
    r"(?:[\w-]+[_-])?(?:secret|password|passwd|pwd|api[_-]?key|access[_-]?key)|[\w-]+[_-]token"
)
_LOGIN: Final = r"[^/?#\s\"@:]*@|[^/?#\s\"@]*:(?!\d{0,5}(?:[/?#]|$))[^\s\"@]*@"
"""`me@`, `me:password@`, also where the password holds a slash; but not the `@` in a key."""
SECRET: Final = rf"(?i)(?<!file)://(?:{_LOGIN}|[^\s\"]*[?&#](?:token|{_NAMES})=)"
"""Finds what must not be given; of a file's name it is not asked."""
_IN_URL: Final = re.compile(SECRET)
_AT: Final = re.compile(rf"://(?:{_LOGIN})")
_LOGGED_IN: Final = re.compile(_LOGIN)
_SIGNED: Final = re.compile(rf"[?&#](?:{_NAMES})=", re.IGNORECASE)
_VALUE: Final = re.compile(rf"([?&#](?:token|{_NAMES})=)[^&\s\"']*", re.IGNORECASE)
_DEPTH: Final = 5  # of the settings of a night


def refuse(value: object) -> None:
    """Do nothing where no text of a value, however deep, is an address with a secret in it.

    Args:
        value: a text, or a model, mapping or sequence that holds some.

    Raises:
        SettingsError: there is one; it is not repeated.
    """
    if isinstance(value, str):
        if _IN_URL.search(value):
            raise SettingsError(REFUSAL)
    elif isinstance(value, BaseModel):
        refuse(value.__dict__)
    elif isinstance(value, Mapping):
        for key, held in value.items():
            refuse(key)
            refuse(held)
    elif isinstance(value, list | tuple | set | frozenset):
        for held in value:
            refuse(held)


def has_login(url: str) -> bool:
    """Tell whether an address names a user."""
    return bool(_LOGGED_IN.match(url.partition("://")[2]))


def is_signed(url: str) -> bool:
    """Tell whether an address carries a key or a signature.

    A bare `token` is none: many public pages have one that is a part of their name.
    """
    return bool(_SIGNED.search(url))


def without(text: str) -> str:
    """Return a text with `***` for every key, password and signature in the URLs it holds."""
    return _VALUE.sub(r"\1***", _AT.sub("://***@", text))


class Refused:
    """Of a parameter's type, `Annotated[T, Refused()]`: no address in it carries a secret.

    The JSON schema says it too, so that a Prefect server refuses a run before it is stored.
    """

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401 - any type
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Look at what is given before it is made anything of."""
        return core_schema.no_info_before_validator_function(_checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Say the same in JSON schema."""
        found = handler(schema)
        return {**found, **_rule(_DEPTH if "$ref" in str(found) else 0)}


def _checked(value: object) -> object:
    refuse(value)  # no ValueError: pydantic would repeat what it was given, and Prefect log that
    return value


def _rule(depth: int) -> JsonSchemaValue:
    """Return the rule for a text, and for texts `depth` objects below; lists hold no deeper ones.

    `const` is the only word of JSON schema whose error does not repeat the value.
    """
    leaf = {"if": {"type": "string", "pattern": SECRET}, "then": {"const": REFUSAL}}
    if not depth:
        return leaf
    items = {**leaf, "additionalProperties": leaf}
    return {**leaf, "additionalProperties": _rule(depth - 1), "items": items}
