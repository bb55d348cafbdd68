"""Secrets planted wherever a user keeps them, and every byte that was written searched for them."""

from __future__ import annotations

import base64
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.architecture.tree import ROOT
from tests.nights import draw, make_tiny
from tests.prefect_servers import PrefectServer
from tests.servers import S3Address, make_bucket, make_user, s3_client
from tests.web import Reply, Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ID = "C4N4RYKEYID000000001"
KEY = "c4n4ry/secret+key/0123456789abcdefghijklm"
CANARIES = {
    "the secret key": KEY,
    "a wrong secret key": "c4n4ryWRONG/secret+key/0123456789abcde",
    "a session token": "c4n4rySESSIONtoken==",
    "a SAS": "sig=c4n4rySASsignature",
    "a storage key": base64.b64encode(b"c4n4ryAZUREkey").decode(),
    "a token of the hub": "hf_c4n4ryHUBtoken",
    "a password in a row": "c4n4ryROWpassword",
    "a signature in a row": "c4n4ryROWsignature",
    "a signature that a page leads to": "c4n4ryREDIRECTsignature",
    "a password of a page": "c4n4ryREDIRECTpassword",
    "a password of a proxy": "c4n4ryPROXYpassword",
}
SIGNED = f"X-Amz-Expires=60&X-Amz-Signature={CANARIES['a signature in a row']}"
LOUD = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "clipcap,botocore,fsspec,urllib3",
    "RUST_LOG": "debug",
    "CLIPCAP_TEST_SETTINGS": "",
}
NIGHTS = """
import json, os, sys
import tasks._task
tasks._task.RETRY_DELAYS_S = ()  # what is refused here stays refused
from unittest.mock import patch
from clipcap import s3
from flows.nightly import nightly
from flows.settings import NightlySettings

SETTINGS = json.loads(os.environ["CLIPCAP_TEST_SETTINGS"])
PRIVATE = {**SETTINGS, "shard": {"kind": "table", "options": {"private_addresses": True}}}

def night(source, out, settings=SETTINGS, **environment):
    kept = dict(os.environ)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    state = nightly(source, out, NightlySettings.model_validate(settings), return_state=True)
    print(f"NIGHT {state.name}: {state.message}", flush=True)
    os.environ.clear()
    os.environ.update(kept)

def boom(self, *args, **kwargs):
    keys = self.account.keys()
    secret = keys.secret_key
    raise RuntimeError(f"unforeseen, with {len(secret)} characters of locals")

for given in json.loads(sys.argv[1]):
    night(*given["places"], **given["environment"])
night(*json.loads(sys.argv[2]), PRIVATE)
with patch.object(s3.Bucket, "_once", boom):
    s3.bucket.cache_clear()
    night(*json.loads(sys.argv[3]))
"""


def forms(secret: str) -> set[bytes]:
    """Return a secret as it is, in URLs, in JSON and in base64, whatever stands before it."""
    plain = secret.encode()
    shifted = (base64.b64encode(b"x" * n + plain)[4 : -4 - 4 * (n > 0)] for n in range(3))
    return {plain, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), *shifted}


def held(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield bytes as they are, and unpacked where they are packed."""
    yield name, data
    if data[:2] == b"\x1f\x8b":
        yield f"{name} (gzip)", gzip.decompress(data)
    if data[:4] == b"PAR1":
        file = pq.ParquetFile(io.BytesIO(data))
        yield f"{name} (footer)", str(file.metadata.metadata).encode()
        yield f"{name} (rows)", str(file.read().to_pylist()).encode()


def found(pieces: Iterator[tuple[str, bytes]]) -> list[str]:
    """Return which secret lies where."""
    wanted = [(what, form) for what, secret in CANARIES.items() for form in forms(secret)]
    return [
        f"{what} in {name} ({form[:12]!r}...)"
        for name, data in pieces
        for what, form in wanted
        if form in data
    ]


def below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield from held(path.read_bytes(), str(path.relative_to(folder)))


def objects(address: S3Address, bucket: str) -> Iterator[tuple[str, bytes]]:
    """Yield every object of a bucket, and what is said of it."""
    client = s3_client(address)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for one in page.get("Contents", []):
            answer = client.get_object(Bucket=bucket, Key=one["Key"])
            yield f"headers of {one['Key']}", str(answer["ResponseMetadata"]).encode()
            yield from held(answer["Body"].read(), one["Key"])


def pages(folder: Path) -> dict[str, bytes]:
    """Return pages of drawings."""
    names = ("plain", "signed", "secured", "behind")
    for n, name in enumerate(names):
        draw(folder / f"{name}.png", 10 + n)
    return {f"/{name}.png": (folder / f"{name}.png").read_bytes() for name in names}


def table(web: Server) -> bytes:
    """Return a table of addresses as people have them, some with secrets; pages that lead on."""
    host = web.url.removeprefix("http://")
    led = f"X-Amz-Signature={CANARIES['a signature that a page leads to']}"
    web.replies["/leads.png"] = [Reply(302, {"Location": f"/behind.png?{led}"})] * 3
    web.replies["/lost.png"] = [Reply(302, {"Location": f"/status/403?{led}"})] * 3
    login = f"http://me:{CANARIES['a password of a page']}@{host}/plain.png"
    web.replies["/login.png"] = [Reply(302, {"Location": login})] * 3
    rows = [
        f"{web.url}/plain.png",
        f"{web.url}/leads.png",
        f"{web.url}/lost.png",
        f"{web.url}/login.png",
        f"http://me:{CANARIES['a password in a row']}@{host}/secured.png",
        f"{web.url}/signed.png?{SIGNED}",
        f"s3://bucket/signed.png?{SIGNED}",
    ]
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": rows}), sink)
    return sink.getvalue()


@pytest.fixture
def owner(s3: S3Address) -> S3Address:
    """A user of the S3 server whose keys are known when they are seen."""
    return make_user(s3, "canary", access_key=ID, secret_key=KEY)


def environment(owner: S3Address, server: PrefectServer, folder: Path) -> dict[str, str]:
    """Return an environment full of secrets, in which everything is written below `folder`."""
    for name in ("home", "tmp", "cache", "cwd"):
        (folder / name).mkdir(parents=True)
    return {
        **server.environment,
        **owner.environment,
        **LOUD,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "HF_TOKEN": CANARIES["a token of the hub"],
        "AZURE_STORAGE_SAS_TOKEN": CANARIES["a SAS"],
        "AZURE_STORAGE_ACCOUNT_KEY": CANARIES["a storage key"],
        "NO_PROXY": "127.0.0.1",
        "HTTPS_PROXY": f"http://me:{CANARIES['a password of a proxy']}@127.0.0.1:9",
    }


def test_no_secret_is_in_anything_that_was_written(
    owner: S3Address, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    wrote, given = tmp_path / "wrote", tmp_path / "given"
    source, out = (make_bucket(owner, f"{name}-canary") for name in ("source", "out"))
    for n in range(3):
        draw(given / f"{n}.png", n)
        key, data = f"photos/{n}.png", (given / f"{n}.png").read_bytes()
        s3_client(owner).put_object(Bucket="source-canary", Key=key, Body=data)
    (given / "keys").write_text(f"[mine]\naws_access_key_id={ID}\naws_secret_access_key={KEY}\n")
    around = environment(owner, prefect_server, wrote)
    tiny = make_tiny(tmp_path / "models")
    chosen = {
        "embed": tiny.encoder.model_dump(mode="json"),
        "caption": tiny.captioner.model_dump(mode="json"),
        "label": {"label_sets": [tiny.label_set]},
        "max_reject_rate": 1.0,
    }
    around["CLIPCAP_TEST_SETTINGS"] = json.dumps(chosen)
    no_keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    profile = {"AWS_PROFILE": "mine", "AWS_SHARED_CREDENTIALS_FILE": str(given / "keys")}
    wrong = {"AWS_SECRET_ACCESS_KEY": CANARIES["a wrong secret key"]}
    # Ceph looks at no token where there is no STS; it is signed all the same.
    session = {"AWS_SESSION_TOKEN": CANARIES["a session token"]}
    places = [f"{source}/photos", out]
    nights = [
        {"places": places, "environment": {}},
        {"places": places, "environment": {**no_keys, **profile}},
        {"places": places, "environment": wrong},
        {"places": places, "environment": session},
        {"places": [f"{source}-typo/photos", out], "environment": {}},
        {"places": places, "environment": {**no_keys, "AWS_PROFILE": "absent"}},
    ]

    with serving(pages(given)) as web:
        s3_client(owner).put_object(Bucket="source-canary", Key="t.parquet", Body=table(web))
        tables = json.dumps([f"{source}/t.parquet", out])
        words = (json.dumps(nights), tables, json.dumps(places))
        done = subprocess.run(
            [sys.executable, "-c", NIGHTS, *words],
            env=around, cwd=wrote / "cwd", capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        command = [sys.executable, "-m", "clipcap", "--debug", "run", *places, "--no-server"]
        told = subprocess.run(
            command, env={**around, **wrong}, cwd=wrote / "cwd", capture_output=True, timeout=300,
            check=False,
        )  # fmt: skip

    (wrote / "output of the nights").write_text(done.stdout + done.stderr)
    (wrote / "output of the command").write_bytes(told.stdout + told.stderr)
    ended = [line for line in done.stdout.splitlines() if line.startswith("NIGHT")]
    assert [line.split()[1].rstrip(":") for line in ended] == [
        "Completed", "Completed", "Failed", "Completed", "Failed", "Failed", "Completed", "Failed",
    ], done.stdout + done.stderr  # fmt: skip
    assert "unforeseen" in done.stderr + done.stdout
    assert told.returncode == 4
    assert b"Traceback" in told.stderr
    written = list(objects(owner, "out-canary"))
    assert {name.partition("/")[0] for name, _ in written} >= {"manifest", "rejects", "runs"}
    assert found(iter(written)) == []
    assert found(below(wrote)) == []
    assert found(below(prefect_server.home.parent)) == []
