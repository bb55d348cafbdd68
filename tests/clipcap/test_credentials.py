"""What is a secret in an address or an option, and that nobody repeats one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from prefect.logging.handlers import APILogHandler
from pydantic import BaseModel, TypeAdapter

from clipcap import credentials, storage
from clipcap.errors import ServerError, SettingsError
from clipcap.sources.table import Settings as TableSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings
from flows import cli
from flows._logs import Sender
from flows.commands._start import require_answer
from tests.command import clipcap

CANARY = "C4N4RYs3cr3t"
TOKEN = f"https://host/a?alt=media&token={CANARY}"
SIGNED = f"https://b.s3.amazonaws.com/a.jpg?X-Amz-Expires=60&X-Amz-Signature={CANARY}"
LOGIN = f"s3://AKIA:abc/{CANARY}@bucket/prefix"


def lines(name: str) -> list[str]:
    """Return the lines of a table of addresses."""
    path = Path(__file__).parent / "addresses" / name
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


SECRETS, PLAIN, ROWS = lines("secret.txt"), lines("plain.txt"), lines("rows.txt")


def shapes(line: str) -> Iterator[Any]:
    """Yield what a line of a table stands for: a text, and of JSON what it holds."""
    yield line
    if line[0] in "{[" and not line.startswith(("{{", "{token=", "{'")):
        yield json.loads(line)


def said(call: Callable[[], object]) -> object:
    """Return what a call returns; `refused` where it refuses, without a word of a secret."""
    try:
        return call()
    except SettingsError as error:
        told = f"{error!r} {error.__cause__!r} {error.__context__!r}"
        return told if CANARY in told else "refused"


def is_refused(value: object) -> bool:
    """Tell whether a value is refused, without a word of it."""
    return said(lambda: credentials.refuse(value)) == "refused"


class Nested(BaseModel):
    """What is no settings of ours."""

    held: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Plain:
    """Nor this."""

    held: object


def test_every_secret_is_refused_wherever_it_lies_and_is_not_repeated() -> None:
    assert len(SECRETS) >= 200
    assert is_refused({"secret": CANARY.encode()})
    assert is_refused({"auth": ["me", CANARY]})
    assert all(CANARY in line for line in SECRETS)
    passed = [
        (line, type(held))
        for line in SECRETS
        for value in shapes(line)
        for held in (value, {"a": [(value,)]}, Nested(held={"a": [value]}), Plain(value))
        if not is_refused(held)
    ]
    assert passed == []
    assert [line for line in SECRETS if not is_refused({line: 1})] == []


def test_no_secret_is_left_in_a_text() -> None:
    left = [
        told
        for line in SECRETS
        for text in (line, f"Cannot get {line}: denied. '{line}' \"{line}\"", json.dumps([line]))
        if CANARY in (told := credentials.without(text))
    ]
    assert left == []


@pytest.mark.parametrize(
    "header",
    ["Authorization: Unheard {}", "authorization: {}", "Cookie: a={}; b={}", "'Cookie': 'a={}"],
)
@pytest.mark.parametrize("around", ["{}", "at {}\nthen", "('{}', 1)", '["{}", 1]'])
def test_a_header_is_hidden_to_its_end(header: str, around: str) -> None:
    told = credentials.without(around.format(header.format(CANARY, CANARY)))
    assert CANARY not in told
    assert told.endswith("***" + around.rpartition("}")[2])


def test_what_only_looks_like_a_secret_is_none() -> None:
    assert len(PLAIN) >= 200
    assert [line for line in PLAIN for value in shapes(line) if is_refused(value)] == []


def test_what_is_plain_stays_in_a_text() -> None:
    names = ("file:", "./", "img.", "sign ")  # of files, in which a text sees no address
    told = [line for line in PLAIN if not line.startswith(names)]
    changed = [(line, found) for line in told if (found := credentials.without(line)) != line]
    assert changed == []


def test_the_json_schema_says_the_same() -> None:
    """All but secrets that percent-encoding hides: no pattern decodes them."""
    schema = TypeAdapter(Annotated[Any, credentials.Refused()]).json_schema()
    judge = jsonschema.Draft202012Validator(schema)
    assert [line for line in PLAIN if not judge.is_valid(line)] == []
    passed = [line for line in SECRETS if judge.is_valid(line)]
    assert [line for line in passed if "%" not in line] == []
    assert len(passed) <= 6
    for line in set(SECRETS) - set(passed):
        assert all(CANARY not in error.message for error in judge.iter_errors(line))


def test_the_json_schema_sees_options_in_settings() -> None:
    schema = TypeAdapter(Annotated[ShardSettings, credentials.Refused()]).json_schema()
    judge = jsonschema.Draft202012Validator(schema)
    for options in (
        {"secret": CANARY},
        {"deep": {"sas_token": CANARY}},
        {"list": [LOGIN]},
        {"auth": [CANARY]},
    ):
        errors = [error.message for error in judge.iter_errors({"options": options})]
        assert errors == [f"{credentials.REFUSAL!r} was expected"]
    assert judge.is_valid({"options": {"token": "anon", "page_token": "a", "glob": "*.jpg"}})


def test_no_address_of_storage_carries_a_login_or_a_signature() -> None:
    names = r"sig|signature|secret|password|(?:api|access)[_-]?key|[\w-]+[_-]token"
    real = re.compile(rf"@|[?&](?:{names}|[\w-]+-(?:signature|credential))=", re.IGNORECASE)
    addresses = [line for line in SECRETS if line.startswith(("s3:", "https:", "az:", "abfs"))]
    held = [url for url in addresses if real.search(url)]
    assert len(held) >= 70
    assert [url for url in held if said(partial(storage.canonical, url)) != "refused"] == []


def test_plain_addresses_are_places() -> None:
    for line in PLAIN:
        if line[0] not in "{[" and "@account" not in line:
            assert storage.canonical(line)


def test_rows_of_tables_may_hold_what_a_parameter_may_not() -> None:
    """It is public, or lets in nobody who could not read the table."""
    assert [url for url in (*ROWS, TOKEN) if said(partial(storage.canonical, url)) != url] == []


@pytest.mark.parametrize("url", [LOGIN, SIGNED, TOKEN])
def test_settings_refuse_one_in_every_field(url: str) -> None:
    for make in (
        lambda: TableSettings(url=url),
        lambda: TableSettings(url="a.csv", base=url),
        lambda: LabelSettings(label_sets=("scene_things", url)),
        lambda: ShardSettings(options={"storage_options": {"base": url}}),
        lambda: ShardSettings(options={"storage_options": [{"secret": CANARY}]}),
    ):
        with pytest.raises(SettingsError) as refused:
            make()
        assert CANARY not in str(refused.value)


@pytest.mark.parametrize(
    "piece",
    [
        *("a:", "@", "//", "://x:", "%", "?a=", "x:/y:", '"token":', "-----BEGIN PRIVATE KEY-----"),
        *("::a://x:", 'authorization: ="', "x-api-key: '", "ya29.-", "pw_token=a ", "?a-_token"),
    ],
)
def test_a_hostile_text_is_judged(piece: str) -> None:
    """A pattern that took the square of the length would not end within the limit of a test."""
    text = f"https://host/{piece * (400_000 // len(piece))}"
    is_refused(text)
    assert credentials.without(text)
    assert credentials.carries(text) in (True, False)


def test_the_address_of_the_prefect_server_holds_no_login() -> None:
    with pytest.raises(ServerError, match="PREFECT_API_AUTH_STRING") as refused:
        require_answer(f"http://me:{CANARY}@127.0.0.1:4200/api")
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ("run", LOGIN, "out"),
        ("run", "in", LOGIN),
        ("run", "in", "out", "--captioner", f"local-dir:{LOGIN}"),
        ("run", "in", "out", "--model", SIGNED),
        ("run", "in", "out", "--label-set", "scene_things", "--label-set", TOKEN),
        ("run", "in", "out", "--settings", LOGIN),
        ("plan", SIGNED, "out"),
        ("bench", LOGIN),
        ("doctor", "--source", LOGIN),
        ("train", "out", "--captions", LOGIN),
        ("train", "out", "--start", SIGNED),
        ("choose", "out", "--candidates", LOGIN, "--to", "to"),
        ("where", "out", "--to", "to", "--page", SIGNED),
        ("evaluate", "out", "--scores", LOGIN),
        ("labels", "check", LOGIN),
        ("labels", "fit", "out", SIGNED, "--to", "a.parquet"),
        ("models", "promote", "out", LOGIN),
        ("import-clipcap", LOGIN, "folder"),
        ("forget", "out", "cat", "--receipt", LOGIN),
        ("run", LOGIN),
        ("run", "in", "out", LOGIN),
        ("embed", "out", "--batch-size", TOKEN),
        (SIGNED,),
    ],
)
def test_no_command_takes_or_repeats_one(words: tuple[str, ...]) -> None:
    ended = clipcap(*words, *(("--debug",) if words[0] == "run" else ()))
    assert ended.code == 2
    assert CANARY not in ended.out + ended.err


def test_what_a_command_says_last_holds_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_is_debugging", lambda: True)
    error = RuntimeError(f"boom at {LOGIN}")
    cli.report(SettingsError(f"Cannot get {SIGNED}: no."))
    cli._unexpected(RuntimeError, error, None)
    said = capsys.readouterr().err
    assert "boom at s3://***@bucket" in said
    assert CANARY not in said


def test_no_line_that_is_sent_to_prefect_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[str]()
    monkeypatch.setattr(
        APILogHandler, "emit", lambda _self, record: sent.append(logging.Formatter().format(record))
    )
    line = ("clipcap", logging.INFO, "a.py", 1, "%s is gone: %s", (LOGIN, TOKEN))
    record = logging.LogRecord(*line, (OSError, OSError(f"no route to {SIGNED}"), None))
    Sender().emit(record)
    assert "s3://***@bucket/prefix is gone" in sent[0]
    assert "no route to https://b.s3.amazonaws.com" in sent[0]
    assert CANARY not in sent[0]
    assert CANARY in record.getMessage()
