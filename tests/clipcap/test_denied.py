"""A bucket that lists objects and does not give them: rejects, tried again the next night."""

from __future__ import annotations

import json

import pytest

from clipcap import manifest, storage
from clipcap.errors import AccessDeniedError
from tests.clipcap.test_life import fill, live, night, rejected
from tests.servers import S3Address, make_bucket, s3_client


@pytest.mark.s3
def test_an_object_that_is_denied_is_a_reject_until_it_is_given(s3_environment: S3Address) -> None:
    bucket = make_bucket(s3_environment, "denying-some")
    name, out = bucket.removeprefix("s3://"), f"{bucket}/out"
    client = s3_client(s3_environment)
    fill(bucket, {"open/ant.png": 1, "secret/bee.png": 2, "secret/cat.png": 3})
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{name}/secret/*"],
    }
    client.put_bucket_policy(
        Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    )
    with pytest.raises(AccessDeniedError):
        storage.read(f"{bucket}/secret/bee.png")

    for attempt in (1, 2):
        plan = night(bucket, out, dt=f"2026-11-2{attempt}")
        assert plan.listed == 3
        assert [row["uri"] for row in live(out)] == [f"{bucket}/open/ant.png"]
        rows = [
            row for s in manifest.shards(out) for row in manifest.read_rejects(out, s).to_pylist()
        ]
        said = {(row["reason"], row["retryable"], row["attempts"]) for row in rows}
        assert said == {("access_denied", True, attempt)}
        assert len(rows) == 2
        assert "get" in rows[0]["error_message"]

    client.delete_bucket_policy(Bucket=name)
    night(bucket, out, dt="2026-11-23")
    assert len(live(out)) == 3
    assert rejected(out) == []
