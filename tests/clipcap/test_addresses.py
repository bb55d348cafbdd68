"""What tables from strangers cannot do: reach this machine, or what only this machine reaches."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipcap import addresses, storage
from clipcap import web as web_module
from clipcap.errors import AccessDeniedError, TransientStorageError
from clipcap.sample import Form
from tests.clipcap.test_web import HERE, MOST, STRICT, connections
from tests.web import Reply, Server, serving

PUBLIC = ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NOT_PUBLIC = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.170", "192.0.2.1", "192.88.99.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::"),
    *("2001::1", "2001:db8::1", "3fff::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0"),
    *("fec0::1", "ff02::1", "100::1", "4000::1"),
]


@pytest.fixture
def web() -> Iterator[Server]:
    with serving({"/a.png": b"0123456789"}) as server:
        yield server


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public(address: str) -> None:
    assert addresses.is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public(address: str) -> None:
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1"),
        *("0177.0.0.1", "017700000001", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
        *("[::ffff:7f00:1]", "①②⑦.⓪.⓪.①", "127。0。0。1"),
    ],
)
def test_this_machine_is_not_reached_in_any_spelling(web: Server, host: str) -> None:
    port = web.server_address[1]
    with pytest.raises(AccessDeniedError, match="not of the public web"):
        storage.read_page(f"http://{host}:{port}/a.png", STRICT, MOST)
    assert web.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://[fd00:ec2::254]/latest/",
        "http://10.0.0.1/",
        "https://192.168.0.1:8443/",
        "http://[fe80::1]/",
    ],
)
def test_nobody_is_asked_who_is_not_public(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = connections(monkeypatch)
    for call in (lambda: storage.read_page(url, STRICT, MOST), lambda: storage.look(url, STRICT)):
        with pytest.raises(AccessDeniedError, match="`private_addresses`"):
            call()
    assert tried == []


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let every look-up of a name have the next of `answers`; return the names looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def found(host: str, port: int, family: int = 0, type: int = 0) -> list[tuple[Any, ...]]:
        if not host.endswith(".test"):
            return [tuple(one) for one in real(host, port, family, type)]
        asked.append(host)
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET, kind, 6, "", (address, port))
            for address in answers[min(len(asked), len(answers)) - 1]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return asked


def test_the_connection_goes_to_the_address_that_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that is public at the first look and this machine at the second: DNS rebinding."""
    asked = names(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    tried = connections(monkeypatch)
    with pytest.raises(TransientStorageError):
        storage.read_page("http://rebind.test/a.png", STRICT, MOST)
    assert (asked, tried) == (["rebind.test"], [("8.8.8.8", 80)])


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    tried = connections(monkeypatch)
    with pytest.raises(AccessDeniedError) as caught:
        storage.read_page("http://mixed.test/a.png", STRICT, MOST)
    assert tried == []
    assert "10.0.0.1" not in str(caught.value)


def test_the_next_address_is_tried_where_one_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, ["8.8.8.8", "1.1.1.1"])
    tried = connections(monkeypatch)
    with pytest.raises(TransientStorageError):
        storage.read_page("http://two.test/a.png", STRICT, MOST)
    assert tried == [("8.8.8.8", 80), ("1.1.1.1", 80)]


@pytest.fixture
def outside(web: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server, which counts as public here; `inside.test` is still private."""
    real = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda text: text == "127.0.0.1" or real(text))
    names(monkeypatch, ["127.0.0.2"])
    return web.url


@pytest.mark.parametrize("form", [STRICT, HERE])
def test_a_public_page_does_not_lead_to_a_private_one(
    web: Server, outside: str, form: Form
) -> None:
    """Not even where private addresses are allowed: a stranger chose this one."""
    port = web.server_address[1]
    for target in (f"http://inside.test:{port}/a.png", f"//127.0.0.3:{port}/a.png"):
        web.replies["/b"] = [Reply(302, {"Location": target})]
        with pytest.raises(AccessDeniedError):
            storage.read_page(f"{outside}/b", form, MOST)
    assert web.asked == ["GET /b"] * 2


def test_what_a_person_gives_may_be_private_but_not_where_it_leads(
    web: Server, outside: str
) -> None:
    port = web.server_address[1]
    web.replies["/b"] = [Reply(302, {"Location": f"http://inside.test:{port}/a.png"})]
    with pytest.raises(AccessDeniedError):
        storage.read(f"{outside}/b")


def test_private_pages_are_read_where_that_is_allowed(web: Server) -> None:
    assert storage.read_page(f"{web.url}/a.png", HERE, MOST) == b"0123456789"
    web.replies["/b"] = [Reply(302, {"Location": "/a.png"})]
    assert storage.read_page(f"{web.url}/b", HERE, MOST) == b"0123456789"


KEYS = [
    *("169.254.169.254", "169.254.170.2", "[fd00:ec2::254]", "[fd20:ce::254]", "[fe80::1]"),
    *("[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "2852039166"),
    *("100.100.100.200", "192.0.0.192", "168.63.129.16"),
]


@pytest.mark.parametrize("host", KEYS)
@pytest.mark.parametrize("form", [HERE, "web-private-any"])
def test_no_row_names_the_keys_of_a_cloud_where_private_addresses_are_allowed(
    monkeypatch: pytest.MonkeyPatch, host: str, form: Form
) -> None:
    tried = connections(monkeypatch)
    url = f"http://{host}/latest/"
    for call in (lambda: storage.read_page(url, form, MOST), lambda: storage.look(url, form)):
        with pytest.raises(AccessDeniedError, match="Not even `private_addresses`"):
            call()
    assert tried == []


@pytest.mark.parametrize("host", KEYS)
def test_nothing_leads_on_to_the_keys_of_a_cloud(web: Server, host: str) -> None:
    """Neither a row of a private address, nor what a person gave."""
    web.replies["/b"] = [Reply(302, {"Location": f"http://{host}/latest/"})] * 2
    url = f"{web.url}/b"
    with pytest.raises(AccessDeniedError, match="Not even `private_addresses`"):
        storage.read_page(url, HERE, MOST)
    with pytest.raises(AccessDeniedError, match="Not even `private_addresses`"):
        storage.read(url)
    assert web.asked == ["GET /b"] * 2


def test_a_person_may_give_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = connections(monkeypatch)
    with pytest.raises(TransientStorageError):
        storage.read("http://169.254.0.7/t.csv")
    assert set(tried) == {("169.254.0.7", 80)}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
@pytest.mark.parametrize("name", ["safe.test", "other.test"])
def test_a_certificate_is_held_against_the_name_and_not_the_address(
    web: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=safe.test", "-addext", "subjectAltName=DNS:safe.test")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject)
    subprocess.run(
        [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    real = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda text: text == "127.0.0.1" or real(text))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names(monkeypatch, ["127.0.0.1"])
    web_module._connections.cache_clear()
    url = f"https://{name}:{web.server_address[1]}/a.png"
    if name == "safe.test":
        assert storage.read_page(url, STRICT, MOST) == b"0123456789"
    else:
        with pytest.raises(TransientStorageError):
            storage.read_page(url, STRICT, MOST)
    web_module._connections.cache_clear()
