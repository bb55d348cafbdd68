"""What an output lives through besides changes: half tries, odd names, odd captions."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from unittest.mock import patch

import pytest

from clipcap import gate, layout, manifest, storage
from clipcap.errors import SettingsError, TooManyRejectsError, TransientStorageError
from clipcap.images import ImageSettings
from clipcap.layout import Run
from clipcap.plans import Plan
from clipcap.stages import shard as stage
from tests.clipcap.test_life import SETTINGS, fill, live, night, rejected, require_exact

DAY, NEXT_DAY = "2026-11-20", "2026-11-21"


@pytest.fixture
def place() -> tuple[str, str]:
    """Give a source and an output in memory that nobody else has."""
    name = secrets.token_hex(6)
    return f"memory://source-{name}", f"memory://out-{name}"


def write_new(source: str, out: str, dt: str = DAY) -> tuple[Run, Plan]:
    """Plan and write shards, and retire nothing: what a night does that is killed before."""
    run = Run(secrets.token_hex(4), out, dt)
    plan = stage.plan(source, run=run, settings=SETTINGS)
    for planned in plan.planned:
        stage.shard(planned.shard, run=run, settings=SETTINGS)
    return run, plan


def test_a_source_that_was_mended_passes_the_gate(place: tuple[str, str]) -> None:
    """The rejects of a stopped night still stand when the next one looks: they leave after it."""
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 0})
    run, plan = write_new(source, out)
    with pytest.raises(TooManyRejectsError):
        gate.require_few_rejects(run, max_reject_rate=0.05, retired=plan.retired)
    fill(source, {"bee.png": 2})
    run, plan = write_new(source, out)
    gate.require_few_rejects(run, max_reject_rate=0.05, retired=plan.retired)


def test_images_that_left_do_not_thin_out_the_rejects(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2, "cat.png": 0})
    run, plan = write_new(source, out)
    gate.require_few_rejects(run, max_reject_rate=0.4, retired=plan.retired)
    storage.delete(f"{source}/ant.png")
    run, plan = write_new(source, out)
    with pytest.raises(TooManyRejectsError, match="50% of 2"):
        gate.require_few_rejects(run, max_reject_rate=0.4, retired=plan.retired)


def test_a_reject_of_another_source_is_refused_as_well(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"deep/ant.png": 0, "bee.png": 1})
    night(source, out)
    with pytest.raises(SettingsError, match="already, from another source"):
        night(f"{source}/deep", out)


def test_a_limit_leaves_one_row_of_what_a_killed_night_left_in_two_shards(
    place: tuple[str, str],
) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2, "cat.png": 3})
    night(source, out)
    fill(source, {"bee.png": 4, "cat.png": 0})
    write_new(source, out, NEXT_DAY)
    fill(source, {"ant.png": 5, "bee.png": 6, "cat.png": 7})
    night(source, out, dt="2026-11-22", limit=1)
    assert [row["uri"] for row in live(out)] == [f"{source}/{n}.png" for n in ("ant", "bee", "cat")]
    assert rejected(out) == []


@pytest.mark.parametrize("dies_at", ["manifest", "shards"])
def test_a_retirement_that_ended_half_way_can_be_tried_again(
    place: tuple[str, str], dies_at: str
) -> None:
    source, out = place
    bucket = fill(source, {"ant.png": 1, "bee.png": 2})
    night(source, out)
    bucket |= fill(source, {"ant.png": 3, "bee.png": 4})
    run, plan = write_new(source, out, NEXT_DAY)
    real = storage.delete

    def later(url: str) -> None:
        if f"{out}/{dies_at}/" in url:
            raise TransientStorageError("Cannot delete it: the store did not answer in time.")
        real(url)

    with patch.object(storage, "delete", later), pytest.raises(TransientStorageError):
        stage.retire(plan.retired[0], run=run)
    stage.retire(plan.retired[0], run=run)
    require_exact(source, out, bucket)
    assert storage.info(layout.tar(out, plan.retired[0])) is None


def test_an_image_is_first_seen_once_even_if_it_was_broken_for_a_while(
    place: tuple[str, str],
) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2, "cat.png": 0})
    night(source, out)
    first = {row["uri"]: row["first_seen_at"] for row in live(out)}
    shard = manifest.shards(out)[0]
    first[f"{source}/cat.png"] = manifest.read_rejects(out, shard).to_pylist()[0]["rejected_at"]
    fill(source, {"bee.png": 0})
    night(source, out, dt=NEXT_DAY)
    fill(source, {"bee.png": 3, "cat.png": 4})
    night(source, out, dt="2026-11-22")
    assert {row["uri"]: row["first_seen_at"] for row in live(out)} == first


def test_an_image_that_was_too_small_is_tried_again_under_another_limit(
    place: tuple[str, str],
) -> None:
    source, out = place
    bucket = fill(source, {"ant.png": 1, "bee.png": 0})
    strict = SETTINGS.model_copy(update={"images": ImageSettings(min_side_px=100)})
    run = Run("r", out, DAY)
    for planned in stage.plan(source, run=run, settings=strict).planned:
        stage.shard(planned.shard, run=run, settings=strict)
    assert rejected(out) == [f"{source}/ant.png", f"{source}/bee.png"]
    assert stage.plan(source, run=run, settings=strict).planned == ()
    assert sum(planned.images for planned in night(source, out, dt=NEXT_DAY).planned) == 1
    require_exact(source, out, bucket)


@pytest.mark.parametrize(
    "name",
    ["a?sig=1.png", "a&sig=b.png", "?X-Amz-Signature=z.png", "%2e.png", "a#b.png", "ü \n@.png"],
)
def test_an_image_may_have_any_name(place: tuple[str, str], name: str) -> None:
    source, out = place
    bucket = fill(source, {name: 1})
    night(source, out)
    require_exact(source, out, bucket)


@pytest.mark.parametrize("others", [(), ("ant.txt",)])
def test_half_a_character_in_a_caption_stops_no_night(
    place: tuple[str, str], others: Collection[str]
) -> None:
    source, out = place
    bucket = fill(source, {"ant.png": 1, "bee.png": 2})
    storage.write(f"{source}/ant.json", b'{"caption": "one \\ud800 ant"}')
    for name in others:
        storage.write(f"{source}/{name}", b"words")
    storage.write(f"{source}/all.json", b'{"bee.png": ["a \\udfff bee"]}')
    chosen = SETTINGS.model_copy(update={"options": {"captions": f"{source}/all.json"}})
    run = Run("r", out, DAY)
    for planned in stage.plan(source, run=run, settings=chosen).planned:
        stage.shard(planned.shard, run=run, settings=chosen)
    require_exact(source, out, bucket)
    said = [row["reference_captions"] for row in live(out)]
    assert said == [[*(["words"] if others else []), "one ? ant"], ["a ? bee"]]


def test_a_long_caption_file_is_not_read(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1})
    storage.write(f"{source}/ant.txt", bytes(2**20 + 1))
    real = storage.read_part

    def short(url: str, offset: int, length: int | None) -> storage.Part:
        assert not url.endswith(".txt")
        return real(url, offset, length)

    with patch.object(storage, "read_part", short):
        night(source, out)
    assert rejected(out) == [f"{source}/ant.png"]


def test_no_key_of_a_url_is_written_down() -> None:
    text = '{"a": "s3://AKIA:hunter2@b/x", "b": "https://h/c?v=1&sig=hunter2&w=2", "c": "s3://b/x"}'
    told = storage.without_credentials(text)
    assert told == '{"a": "s3://***@b/x", "b": "https://h/c?v=1&sig=***&w=2", "c": "s3://b/x"}'


def test_settings_of_a_source_that_do_not_fit_are_not_repeated(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1})
    chosen = SETTINGS.model_copy(update={"options": {"storage_options": {"user": "hunter2"}}})
    with pytest.raises(SettingsError, match=r"`storage_options`: Extra inputs") as refused:
        stage.plan(source, run=Run("r", out, DAY), settings=chosen)
    assert "hunter2" not in str(refused.value)
