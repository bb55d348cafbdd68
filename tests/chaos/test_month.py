"""Thirty nights with all that happens in a month leave what one night from nothing leaves."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from clipcap import storage
from clipcap.layout import PER_SHARD, Table
from tests.chaos import standins
from tests.chaos.store import Actor, Crash, Store
from tests.chaos.world import BROKEN, Folder, Work, World, require_exact
from tests.tables import CLOCKS, glob

NIGHTS = 30
PACKED = (*CLOCKS, "shard", "member_offset", "extra_json")
"""What depends on the night in which an image came, beside names of runs and clocks."""


@pytest.mark.timeout(1200)  # a hundredth of that on an idle machine
def test_after_thirty_nights_every_table_is_as_from_scratch(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store, draw = Store(), random.Random(30)
    with standins.installed(store):
        world = World(store, Folder.made(tmp_path_factory.mktemp("models")))
        for number in range(8):
            world.put(f"{number}.png", draw.randrange(1, 200))
        embedded = 0
        for number in range(NIGHTS):
            change(world, number, draw)
            changes = changes_of_a_night(world) if number % 3 == 2 else 0
            before = Work.now()
            if changes:
                with pytest.raises(Crash):
                    world.night(Actor(left=draw.randint(1, changes), after=number % 2 == 0))
            if number % 6 != 5:  # else what was killed waits for the next night
                world.night()
                require_exact(world)
            embedded += Work.now().since(before)[0]
            world.next_day()
        world.night()
        require_exact(world)
        afresh = replace(world, name=-1, objects={}, at=world.source)
        afresh.night()
        require_same(world, afresh)
        assert embedded < NIGHTS * len(world.bucket) / 3


def changes_of_a_night(world: World) -> int:
    """Return how often a night would change the output now, by one that is taken back."""
    kept = world.kept()
    count = len(world.night())
    world.store.objects = dict(kept.objects)
    return count


def change(world: World, number: int, draw: random.Random) -> None:
    """Let a day's changes come: new, replaced, renamed, gone and broken pictures, other models."""
    for new in range(3):
        world.put(f"{number}-{new}.png", draw.randrange(1, 200))
    there = sorted(world.bucket)
    world.put(draw.choice(there), draw.randrange(1, 200))
    world.put(f"{number}-rot.png", BROKEN)
    if number % 2:
        world.remove(draw.choice(there))
        world.rename(draw.choice(there), f"{number}-moved.png")
    if number in (7, 19):
        world.choose(encoder=1 - world.chosen.encoder)
    if number in (4, 11, 23):
        world.choose(captioner=1 - world.chosen.captioner)
    if number in (9, 15, 26):
        world.choose(label_set=1 - world.chosen.label_set)


def require_same(world: World, afresh: World) -> None:
    """Check all tables of the models of now against those of an output that knows one night."""
    for name in PER_SHARD:
        assert told(world, name) == told(afresh, name)


def told(world: World, name: Table) -> list[dict[str, Any]]:
    """Return the rows of a table by the models of now, without what depends on the night."""
    chosen = world.chosen
    of = {
        "embeddings": ("model_id", f"colours-{chosen.encoder}"),
        "captions": ("captioner_id", f"teller-{chosen.captioner}"),
        "labels": ("label_set", f"set{chosen.label_set}"),
    }
    column, value = of.get(name, ("", None))
    rows = [
        {key: one for key, one in row.items() if key not in PACKED}
        for row in glob(world.out, name).to_pylist()
        if not column or row[column] == value
    ]
    return sorted(rows, key=lambda row: (row["image_id"], row.get("rank", 0)))


def test_the_month_leaves_nothing_that_nobody_needs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Plans of killed runs, tars that never counted and rejects without a manifest go in a day.

    So does the probe for whether an output is writable: each killed run left one, with a name of
    its own, and nothing ever removed it.
    """
    store = Store()
    with standins.installed(store):
        world = World(store, Folder.made(tmp_path_factory.mktemp("models")))
        for at in range(1, 13):
            world.put(f"{at}.png", at)
            with pytest.raises(Crash):
                world.night(Actor(left=at))
        for _ in range(2):
            world.next_day()
            world.night()
        found = {one.url.removeprefix(f"{world.out}/") for one in storage.list_objects(world.out)}
        shards = {
            path.partition("/")[2].rpartition(".")[0]
            for path in found
            if path.startswith("manifest/")
        }
        tars = {
            path.partition("/")[2].rpartition(".")[0]
            for path in found
            if path.startswith("shards/")
        }
        assert tars == shards
        assert [path for path in found if path.startswith("_plans/")] == []
        assert [path for path in found if "_probe" in path] == []
        require_exact(world)
