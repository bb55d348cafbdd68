"""The life of an output, on a store in memory: any changes, crashes, models, two runs at once.

Every night is the nightly flow itself, with all of its stages. Only models, worker processes and
threads are stand-ins (`tests.chaos.standins`), so that an example costs a tenth of a second and
what happens in it is the same every time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Literal

import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

from clipcap.errors import ClipcapError
from tests.chaos import standins
from tests.chaos.store import Actor, Crash, Store
from tests.chaos.turns import Turns
from tests.chaos.world import BROKEN, RECORDS, Folder, Models, Work, World, require_exact

EXAMPLES = int(os.environ.get("CLIPCAP_CHAOS_EXAMPLES", "2000"))
SEED = os.environ.get("CLIPCAP_CHAOS_SEED", "0")
"""The same one draws the same examples again; hypothesis' own `--hypothesis-seed` is not asked."""
PARTS = 8
"""Tests that share the examples, for the processes that run tests beside each other."""
LAST = 44
"""No night of so few pictures changes the output more often than this."""
NAMES = ("ant", "bee", "cat", "dog", "eel")
FIRST = {"ant": 10, "bee": 20, "cat": 30, "rot": BROKEN, "zebra": 99}
"""What the first night found; `zebra` stays, since an empty source is refused."""

Change = tuple[Literal["put", "remove", "rename", "deny", "allow"], str, str, int]


@dataclass(frozen=True)
class Ended:
    """Where a run ends: at which of its changes, before or after it; 0 lets it run through."""

    at: int
    after: bool
    hours_ahead: int
    """Of its clock."""
    models: Models | None = None
    """What it takes; nothing: what all take at that time."""

    def actor(self) -> Actor:
        ahead = timedelta(hours=self.hours_ahead)
        return Actor(left=self.at or -1, after=self.after, ahead=ahead)


@dataclass(frozen=True)
class Step:
    """What happens to the source, then to the settings, then a night or two at once."""

    changes: list[Change]
    meanwhile: list[Change]
    """What happens to the source while a night is under way; then all of it is within reach."""
    models: Models
    is_next_day: bool
    runs: list[Ended]
    turns: list[int]
    """After how many calls to the store the other run goes on, again and again."""


changes = st.tuples(
    st.sampled_from(("put", "put", "put", "remove", "rename", "deny", "allow")),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from((BROKEN, *range(1, 9))),
)
models = st.builds(Models, st.integers(0, 1), st.integers(0, 1), st.integers(0, 1))
alone = st.builds(Ended, st.integers(0, LAST), st.booleans(), st.sampled_from((0, 0, -30, 30)))
beside = st.builds(
    Ended,
    st.integers(0, LAST),
    st.booleans(),
    st.sampled_from((0, 0, -20, 20)),
    st.one_of(st.none(), models),
)
steps = st.builds(
    Step,
    changes=st.lists(changes, max_size=3),
    meanwhile=st.one_of(st.just([]), st.lists(changes, max_size=2)),
    models=st.one_of(st.just(Models()), models),
    is_next_day=st.booleans(),
    runs=st.one_of(alone.map(lambda one: [one]), st.lists(beside, min_size=2, max_size=2)),
    turns=st.lists(st.integers(1, 40), max_size=8),
)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    """Give outputs of no night, of one, and of three with other models and other pictures."""
    store = Store()
    with standins.installed(store):
        world = World(store, Folder.made(tmp_path_factory.mktemp("models")))
        for path, colour in FIRST.items():
            world.put(path, colour)
        found = [world.kept()]
        world.night()
        found.append(world.kept())
        world.next_day()
        world.choose(captioner=1, label_set=1)
        world.put("ant", 11)
        world.put("eel", 50)
        world.night()
        world.next_day()
        world.choose(encoder=1)
        world.remove("bee")
        world.night()
        yield [*found, world.kept()]


def test_a_run_may_end_at_any_change_of_the_longest_night(begun: list[World]) -> None:
    """With 30 for the last one, nothing ever died while it published a first night."""
    world = begun[0].again()
    for number, path in enumerate(NAMES, 1):
        world.put(path, number)
    assert LAST - 6 <= len(world.night()) <= LAST


Check = Callable[[int, list[Step], bool, str], None]
"""Takes which output it begins with, the history, whether a day goes by, what is asked last."""


def draw(check: Check, part: str, examples: int, steps_at_most: int) -> None:
    """Check as many examples as asked, which another part has not."""

    @seed(f"{SEED} {part} {steps_at_most}")
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,  # where CI is set it is True, and all parts would draw the same
        suppress_health_check=list(HealthCheck),
    )
    @given(
        begin=st.sampled_from(range(3)),
        history=st.lists(steps, min_size=1, max_size=steps_at_most),
        is_next_day=st.booleans(),
        last=st.sampled_from(("", "", "", "nothing", "captioner", "label_set", "replaced")),
    )
    def example(begin: int, history: list[Step], is_next_day: bool, last: str) -> None:
        check(begin, history, is_next_day, last)

    example()


def test_no_part_draws_the_examples_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    drawn: list[set[str]] = []
    for part in range(3):
        found: set[str] = set()
        draw(lambda *one, found=found: found.add(repr(one)), str(part), 60, 1)
        drawn.append(found)
    assert all(len(found) > 30 for found in drawn)
    assert len(set.union(*drawn)) > 0.9 * sum(len(found) for found in drawn)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a tenth of that on an idle machine
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("steps_at_most", "share"), [(1, 0.95), (3, 0.05)])
def test_after_any_history_one_more_run_is_right_and_the_next_does_nothing(
    begun: list[World], part: int, steps_at_most: int, share: float
) -> None:
    def check(begin: int, history: list[Step], is_next_day: bool, last: str) -> None:
        world = begun[begin].again()
        for step in history:
            take(world, step)
            world.allow()
        if is_next_day:
            world.next_day()
        world.night()
        require_exact(world)
        if last:
            require_no_more_than(world, last)

    draw(check, str(part), math.ceil(EXAMPLES * share / PARTS), steps_at_most)


def take(world: World, step: Step) -> None:
    """Let one step happen."""
    change(world, step.changes)
    world.chosen = step.models
    if step.is_next_day:
        world.next_day()
    works = [(ended.actor(), partial(run, world, ended.models)) for ended in step.runs]
    if step.meanwhile:
        works.append((Actor(), partial(upload, world, step.meanwhile)))
    if len(works) == 1:
        actor, work = works[0]
        event(work(actor))
        return
    turns = Turns([actor for actor, _ in works], step.turns)
    told: list[str] = []
    threads = [
        Thread(target=lambda one=one, work=work: told.append(turns.taken(one, work)))
        for one, work in works
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == len(works), "one of them ended with an error of another kind"
    event(f"at once: {' and '.join(sorted(told))}")


def upload(world: World, changes: list[Change], actor: Actor) -> str:
    """Change the source in one's turns."""
    world.store.actor = actor
    try:
        change(world, changes)
    finally:
        world.store.actor = None
    return "uploaded"


def change(world: World, changes: list[Change]) -> None:
    """Change the source."""
    for kind, path, other, colour in changes:
        if kind == "put":
            world.put(path, colour)
        elif kind == "remove":
            world.remove(path)
        elif kind == "deny":
            world.deny(path)
        elif kind == "allow":
            world.allow()
        elif path != other:
            world.rename(path, other)


def run(world: World, models: Models | None, actor: Actor) -> str:
    """Run a night that may end early; return how it ended."""
    try:
        world.night(actor, models)
    except Crash:
        return "killed"
    except ClipcapError as error:
        return f"refused ({type(error).__name__})"
    return "finished"


def require_no_more_than(world: World, last: str) -> None:
    """Run once more, after nothing or one thing has changed, and count what is done."""
    live = sum(colour != BROKEN for colour in world.bucket.values())
    chosen = world.chosen
    if last == "captioner":
        world.choose(captioner=1 - chosen.captioner)
    elif last == "label_set":
        world.choose(label_set=1 - chosen.label_set)
    elif last == "replaced":
        world.put("zebra", 77)
    before = Work.now()
    changes = world.night()
    embedded, captioned = Work.now().since(before)
    assert embedded == (1 if last == "replaced" else 0)
    assert captioned <= {"replaced": 1, "captioner": live}.get(last, 0)
    if last == "nothing":
        own = [path.partition("/")[0] for _, path in changes if not path.startswith("_probe")]
        assert sorted(own) == sorted(RECORDS), "one object of each record, and nothing else"
        assert len(changes) == len(own) + 2, "the probe of the store is written and deleted"
    else:
        require_exact(world)
