"""Any value in, a refusal out if an address or option in it carries a password, key or signature.

What is given to a flow is stored by Prefect, shown on its pages and written into the `runs` table;
what is given as a setting lies in footers and cards. So nothing secret may be given at all, and no
refusal repeats what it refuses.

What is a secret stands in patterns, since the JSON schema of a flow holds them too. Each takes time
in proportion to the text, whatever the text: a part that may be long is begun at one kind of
character and ends before the next of that kind.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import starmap
from typing import Any, Final
from urllib.parse import unquote

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from clipcap.errors import SettingsError

REFUSAL: Final = (
    "An address or option must not carry credentials, a key or a signature: it would be stored and "
    "shown. Set them in the environment instead (for S3: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; Azure: AZURE_STORAGE_ACCOUNT_KEY; Google: "
    "GOOGLE_APPLICATION_CREDENTIALS; the model hub: HF_TOKEN; Prefect: PREFECT_API_AUTH_STRING)."
)
HIDDEN: Final = "***"

# Who logs in: `me@`, `me:password@`. The password may hold slashes, blanks and more `@`.
_PATHS: Final = "".join(f"(?<!{name}://)" for name in ("file", "zip", "tar", "memory", "github"))
"""Schemes behind which a path stands, or `organisation:repository@revision`."""
_CONTAINERS: Final = "".join(f"(?<!{name}://)" for name in ("abfs", "abfss", "wasb", "wasbs"))
"""Schemes of Azure that write `container@account`."""
_USER: Final = r"[^/?#\s\"@:\[]"
_PORT: Final = r"\d{0,5}(?:[/?#\s\"'),;>\]]|$)"
_PASSWORD: Final = (
    r"(?!:|\s(?:[^\s@]*\s|$))(?:(?!://|\"[\s,:}\])]|\"$)[^\n@])*@"
    r"(?:(?:(?!://)[^\s\"@])*@)*"  # up to the last @ of the word
)
_AT: Final = (
    rf"://{_PATHS}(?:{_CONTAINERS}{_USER}+@(?:[^\s\"/?#@]*@)*|/?{_USER}*:(?!{_PORT}){_PASSWORD}|"
    rf"(?:(?<=s3://|gs://|az://)|(?<=s3a://|gcs://))/?{_USER}*:{_PASSWORD})"  # a bucket has no port
)
_MISTYPED: Final = rf"(?:^|(?<=[\s\"']))(?!file)[\w+.-]{{1,20}}:/{_USER}+:[^\s\"'@]*@"

# What an option is called whose value is a secret; it is none if it says so, or where to find it.
_PAGING: Final = (
    r"[\w.-]*(?:page|next|prev|previous|max|min|num|continuation|continue|cursor|sync|delta|change|"
    r"start|stop|resume|skip|marker|list|pad|eos|bos|unk|mask|"
    r"(?<![a-z])(?:end|begin|sep|cls|image|special|prefix))[_-]?token(?![\w.-])"
)
_LONG: Final = (
    rf"(?!{_PAGING})[\w.-]*(?:secret|password|passwd|passphrase|credentials?|authorization|token|"
    r"connection[_-]?string|(?:api|access|account|auth|secret|private|shared|storage|sas|master|"
    r"customer|encryption|subscription)[_-]?key(?:[_-]?(?:id|base64))?)"
)
_SHORT: Final = (
    r"(?:[\w.-]*[_.-])?(?:sas|jwt|auth|bearer|pwd|pw)|pass|tok|pkey|rlkey|cookie|delegation|"
    r"conn[_-]?str"
)
_SIGNATURE: Final = r"[\w.-]*signature|(?:[\w.-]*[_.-])?(?:sig|hmac)|key-pair-id|googleaccessid"
_BLANK: Final = (
    r"(?:true|false|yes|no|on|off|none|null|anon|iam|[*?]+|\$\{\w{1,80}\}|(?-i:\$[A-Z][A-Z0-9_]{1,80})|"
    r"\{\{[^}]{0,80}\}\}|<[\w -]{1,40}>)?"
)
_NO_VALUE: Final = rf"{_BLANK}(?:[&#;,\s\"'\\)\]}}]|$)"

# How name and value stand together: in an address, in a list of options, in JSON.
_SEPARATOR: Final = r"[?&#;~\[\\%](?:(?<=\\)u0026|(?<=%)(?:25)*(?:3f|26|23|3b|5b)|(?<![\\%]))"
_IS: Final = r"(?:\]|%(?:25)*5d)?(?:=|%(?:25)*3d)"
_NAMED: Final = rf"(?=[\w.-]+[=%\]])(?:{_LONG}|{_SHORT}|{_SIGNATURE}){_IS}(?!{_NO_VALUE})"
_ASKED: Final = rf"{_SEPARATOR}{_NAMED}"
_ADDRESSED: Final = rf"(?:^|[\s\"])(?:(?!(?<!file)://)[^\s\"])*(?<!file)://[^\s\"]*{_ASKED}"
"""In an address, once for each word; of a file's name it is not asked."""
_LISTED: Final = (
    r"(?:^|[\s;,|\"'(\[{])(?=[\w.-]+=\S|[a-z\d.]*[_-][\w.-]*\s?=)"
    rf"(?:{_LONG}|pwd)\s?=\s?[\"']?"
    rf"(?!{_NO_VALUE}|[*\[]|\{{[^\s,}}.]*(?:,|\.\.)|\d{{1,4}}(?:\.\w{{3,4}})?(?:[\s\"',;?)}}\]]|$))"
)
"""In a list of options; not in prose or globs: `token = coin`, `token=5?`, `token=*.jpg`."""
_QUOTED: Final = (
    rf"[\"'](?=[\w.-]+[\\\"'])(?:{_LONG}|pwd|sas)\\{{0,3}}[\"']\s{{0,8}}:\s{{0,8}}\\{{0,3}}[\"']"
    rf"(?!{_BLANK}\\{{0,3}}[\"'])"
)
_COLON: Final = r"[\"']?\s?:\s?(?:b?[\"'])?"
_HEADER: Final = (
    rf"\b(?:authorization{_COLON}(?=(?:bearer|basic|token|api-?key|oauth|ssws|negotiate|digest|"
    r"aws4-[\w-]+)\s+\S)|(?:api-?key|subscription-key|(?:auth|access|security|session|private|vault)"
    rf"-token){_COLON}(?=\S)(?!{_NO_VALUE}))"
)
_HEADERS: Final = rf"\b(?:authorization{_COLON}(?=\S)|cookie{_COLON}(?=[^\s=;]+=))"
"""In a text whatever an `authorization` is; in a parameter it may be a sentence."""

# What is a secret wherever it stands.
_PEM: Final = r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY"
_SAS: Final = r"SharedAccessSignature[ =](?=\w)|^\??sv=\d[^\s\"]*&sig="
_KNOWN: Final = (
    r"\b(?-i:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9]{22}_|AIza[\w-]{30}|"
    r"(?:hf_|pn[ub]_|ya29\.|glpat-|sk-(?:proj|ant)-)(?=[a-z\d_-]{0,40}[A-Z])"
    r"(?:(?<=_)[A-Za-z0-9]{30}|(?<!_)[\w-]{20})|"
    r"xox[abeprs]-\d{1,13}-[\w-]{8}|A[KS]IA[A-Z0-9]{16}:(?=[^\s:])|"
    r"eyJ(?:(?!eyJ)[\w-]){10,400}\.eyJ)"
)
"""Tokens of GitHub, Google, Hugging Face, Prefect, GitLab, OpenAI, Slack; a pair of AWS; a JWT."""

SECRET: Final = (
    rf"(?i){_AT}|{_MISTYPED}|{_ADDRESSED}|{_LISTED}|{_QUOTED}|{_HEADER}|{_PEM}|{_SAS}|{_KNOWN}"
)
"""Finds what must not be given."""
OPTION: Final = rf"(?i)^(?:{_LONG}|{_SHORT})$"
"""The names of a mapping under which no text may stand."""
_SOME: Final = rf"(?i)^(?!{_BLANK}$)"

_SECRET: Final = re.compile(SECRET)
_LOGIN: Final = re.compile(rf"(?i)(?:^|::)(?:[\w+.-]+(?:{_AT})|{_MISTYPED})")
_SIGNED: Final = re.compile(
    rf"(?i)(?:[?&#]|\\u0026)(?:amp;)?(?!{_PAGING})(?:sig|signature|[\w-]+-(?:signature|credential)|"
    r"awsaccesskeyid|googleaccessid|key-pair-id|[\w-]+[_-]token|"
    rf"(?:[\w-]+[_-])?(?:secret|password|passwd|pwd|api[_-]?key|access[_-]?key))=(?!{_NO_VALUE})"
)
"""What rows of tables may not hold: fewer names, since any of the others may be a picture's own."""
_USED: Final = re.compile(rf"(?i){_AT}")
_TOKEN: Final = re.compile(_KNOWN)
_MAYBE: Final = re.compile(r"[:=%]|[_.-]\w|AIza")
"""Every secret has one of them; most texts have none."""
_WORD: Final = re.compile(r"[^\s\"]+")
_LINE: Final = (  # of a header, to its end or the closing quote
    r"(?:(?<=\")(?:\\.|[^\"\\\n])*|(?:[^\n\"']|(?:(?<==)|(?<==\\))\"[^\"\n]*\")*)"
)
_VALUE: Final = r"(?:[^\s;&\"']|(?<![:.,])[^\S\n](?![\w.-]{1,40}\s?=|\s))+"
_HIDE: Final = (
    (re.compile(rf"(?i)(?s:{_PEM}.*?(?:-----END[^-]{{0,40}}-----|$))"), HIDDEN),
    (_USED, f"://{HIDDEN}@"),
    (re.compile(rf"(?i){_MISTYPED}"), f"://{HIDDEN}@"),
    (re.compile(rf"(?i)({_HEADER}|{_HEADERS}){_LINE}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)({_ASKED})(?:[^&\s\"'#;]|[';](?=[^\s\"']))*"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)({_LISTED})(?:(?<=')[^']*|(?<=\")[^\"]*|{_VALUE})"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)({_QUOTED})(?:(?<=\")(?:\\.|[^\"\\])*|(?:\\.|[^'\\])*)"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)(?:{_SAS}|{_KNOWN})[^\s\"'&;]*"), HIDDEN),
)
_ENCODED: Final = 3  # times that an address may be percent-encoded inside of another
_DEPTH: Final = 5  # of the settings of a night


def refuse(value: object) -> None:
    """Do nothing where no text of a value, however deep, carries a secret.

    Args:
        value: a text, or a model, dataclass, mapping or sequence that holds some.

    Raises:
        SettingsError: there is one; it is not repeated.
    """
    if isinstance(value, str | bytes | os.PathLike):
        is_secret = _holds(os.fsdecode(value))
    else:
        is_secret = isinstance(value, Mapping) and any(starmap(_is_option, value.items()))
    if is_secret:
        raise SettingsError(REFUSAL)
    for held in _held(value):
        refuse(held)


def _holds(text: str) -> bool:
    return bool(_MAYBE.search(text)) and any(map(_SECRET.search, _forms(text)))


def _held(value: object) -> Iterable[object]:
    """Return what a value that is no text is made of."""
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    if isinstance(value, BaseModel):
        return [held for _, held in value]
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return value if isinstance(value, list | tuple | set | frozenset) else ()


def _is_option(name: object, value: object) -> bool:
    """Tell whether a name of a mapping and the text under it, or one listed, are of a secret."""
    if not (isinstance(name, str) and re.search(OPTION, name)):
        return False
    held = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(one, str | bytes) and re.search(_SOME, os.fsdecode(one)) for one in held)


def _forms(text: str) -> Iterator[str]:
    """Yield a text as it is, and decoded as often as that changes it."""
    yield text
    for _ in range(_ENCODED if "%" in text else 0):
        before, text = text, unquote(text)
        if text == before:
            return
        yield text


def has_login(url: str) -> bool:
    """Tell whether an address names a user."""
    return bool(_LOGIN.search(url))


def is_signed(url: str) -> bool:
    """Tell whether an address carries a key or a signature.

    A bare `token` is none, nor is `auth`: many public pages have one that is a part of their name.
    """
    return bool(_SIGNED.search(url))


def carries(page: str) -> bool:
    """Tell the same of a page of the web and what it asks for, and whether either names a user."""
    asked = _forms(f"?{page.partition('?')[2]}")  # elsewhere %3F and %26 are of a file's name
    found = (pattern.search(form) for form in _forms(page) for pattern in (_USED, _TOKEN))
    return is_signed(page) or any(map(_SIGNED.search, asked)) or any(found)


def without(text: str) -> str:
    """Return a text with `***` for every key, password and signature in it."""
    for found, instead in _HIDE:
        text = found.sub(instead, text)
    return _WORD.sub(_seen, text) if "%" in text else text


def _seen(word: re.Match[str]) -> str:
    """Return a word, or nothing of it if a secret is hidden in it by percent-encoding."""
    _, *decoded = _forms(word[0])
    return HIDDEN if any(map(_SECRET.search, decoded)) else word[0]


class Refused:
    """Of a parameter's type, `Annotated[T, Refused()]`: nothing in it carries a secret.

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
    leaf = _no_text(SECRET)
    if not depth:
        return leaf
    held = _no_text(_SOME)
    below = {"additionalProperties": leaf, "patternProperties": {OPTION: {**held, "items": held}}}
    return {**leaf, **below, "additionalProperties": _rule(depth - 1), "items": {**leaf, **below}}


def _no_text(pattern: str) -> JsonSchemaValue:
    """Return the rule that a value is no text with the pattern in it."""
    return {"if": {"type": "string", "pattern": pattern}, "then": {"const": REFUSAL}}
