"""What is an address with a secret in it, and that nobody repeats one."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from clipcap import credentials, storage
from clipcap.errors import ServerError, SettingsError
from clipcap.sources.table import Settings as TableSettings
from clipcap.stages.label import LabelSettings
from flows.commands._start import require_answer

CANARY = "C4N4RY+s3cr3t"
SECRETS = [
    f"s3://AKIA:{CANARY}@bucket/prefix",
    f"s3://AKIA:abc/{CANARY}@bucket/prefix",  # keys of AWS may hold a slash
    f"https://{CANARY}@host/table.csv",
    f"https://b.s3.amazonaws.com/a.jpg?X-Amz-Expires=60&X-Amz-Signature={CANARY}",
    f"https://b.s3.amazonaws.com/a.jpg?x-amz-credential={CANARY}",
    f"https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=AKIA&Signature={CANARY}&Expires=1",
    f"https://a.blob.core.windows.net/c/a.jpg?sv=2022&sig={CANARY}",
    f"https://storage.googleapis.com/b/a.jpg?X-Goog-Signature={CANARY}",
    f"https://host/a?hf_token={CANARY}",
    f"https://host/a?access_token={CANARY}",
    f"https://host/a#api_key={CANARY}",
    f"s3://bucket/a?X-Amz-Security-Token={CANARY}",
]
PLAIN = [
    "s3://bucket/a@b.jpg",
    "s3://bucket/mail/me:you@host.jpg",
    "http://host:8080/a@b.jpg",
    "https://host/a?width=300&design=1",
    "file:///a?sig=1.jpg",
    "file:///home/me@work/a",
    "./a?sig=1.jpg",
    "what is the sig= of this?",
    "",
]
TOKEN = f"https://host/a?alt=media&token={CANARY}"


class Nested(BaseModel):
    """What is no settings of ours."""

    held: dict[str, list[str]]


@pytest.mark.parametrize("url", [*SECRETS, TOKEN])
@pytest.mark.parametrize("wrap", [str, lambda url: {"a": [(url,)]}, lambda url: {url: 1}])
def test_a_secret_is_refused_wherever_it_lies_and_is_not_repeated(url: str, wrap: type) -> None:
    with pytest.raises(SettingsError) as refused:
        credentials.refuse(wrap(url))
    assert CANARY not in str(refused.value)
    with pytest.raises(SettingsError):
        credentials.refuse(Nested(held={"a": [url]}))
    assert CANARY not in credentials.without(f"Cannot get {url}: access denied. '{url}' \"{url}\"")


@pytest.mark.parametrize("url", PLAIN)
def test_what_only_looks_like_one_is_none(url: str) -> None:
    credentials.refuse(url)
    assert storage.canonical(url)


@pytest.mark.parametrize("url", SECRETS)
def test_no_address_of_storage_carries_one(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        storage.canonical(url)
    assert CANARY not in str(refused.value)


def test_a_page_of_the_web_may_have_a_token_for_a_name() -> None:
    """Rows of tables do; it lets in nobody who could not read the table."""
    assert storage.canonical(TOKEN) == TOKEN


@pytest.mark.parametrize("url", [*SECRETS, TOKEN])
def test_settings_refuse_one_in_every_field(url: str) -> None:
    for make in (
        lambda: TableSettings(url=url),
        lambda: TableSettings(url="a.csv", base=url),
        lambda: LabelSettings(label_sets=("scene_things", url)),
    ):
        with pytest.raises(SettingsError) as refused:
            make()
        assert CANARY not in str(refused.value)


def test_the_address_of_the_prefect_server_holds_no_login() -> None:
    with pytest.raises(ServerError, match="PREFECT_API_AUTH_STRING") as refused:
        require_answer(f"http://me:{CANARY}@127.0.0.1:4200/api")
    assert CANARY not in str(refused.value)
