"""Nights on each kind of store: one that keeps writes apart, one that refuses to, one that lies.

Where the probe finds no promise there is no lease, and all else must be as it is anywhere.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipcap import conditions, leases, storage
from clipcap.conditions import Promise
from tests.chaos import standins
from tests.chaos.store import Store
from tests.chaos.test_kills import KILLS, require_unharmed, trials
from tests.chaos.world import BROKEN, Folder, World, require_exact
from tests.proxy import Proxy, proxy
from tests.servers import S3Address, make_bucket, s3_client

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(7200)]


@dataclass(frozen=True)
class Place:
    """A bucket, what its store does with writes that must be the first, and what stands before."""

    kind: Promise
    bucket: str
    before: Proxy


@pytest.fixture(params=["honours", "refuses", "lies"])
def place(
    request: pytest.FixtureRequest, s3_environment: S3Address, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Give a new bucket of Ceph; a versioned one lies, and before one that refuses is a proxy."""
    bucket = make_bucket(s3_environment, f"{request.param}-{secrets.token_hex(4)}")
    if request.param == "lies":
        s3_client(s3_environment).put_bucket_versioning(
            Bucket=bucket.removeprefix("s3://"), VersioningConfiguration={"Status": "Enabled"}
        )
    with proxy(s3_environment.endpoint) as before:
        before.knows_conditions = request.param != "refuses"
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.endpoint)
        yield Place(request.param, bucket, before)


def test_nights_are_right_and_only_a_store_that_keeps_its_word_has_leases(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(leases.SWITCH)
    with standins.models_installed():
        made = World(Store(), Folder.made(tmp_path / "models"), root=f"{place.bucket}/")
        for number in range(4):
            made.put(f"{number}.png", number + 1)
        made.put("rot.png", BROKEN)
        made.night()
        require_exact(made)
        made.put("1.png", 77)
        made.rename("2.png", "new.png")
        made.remove("3.png")
        made.choose(captioner=1, label_set=1)
        made.night()
        require_exact(made)
    assert conditions.kind(made.out) == place.kind
    assert bool(storage.listed(f"{made.out}/_lease")) == (place.kind == "honours")
    assert bool(place.before.done["501"]) == (place.kind == "refuses")


@pytest.mark.parametrize("place", ["refuses", "lies"], indirect=True)
def test_a_night_killed_where_nothing_is_promised_ends_as_one_that_was_not(place: Place) -> None:
    require_unharmed(trials("nightly", f"{place.bucket}/killed", math.ceil(KILLS / 4)))
