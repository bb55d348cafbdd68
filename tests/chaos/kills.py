"""A flow and a place in, real processes killed at random times in it, what is wrong after that out.

    python -m tests.chaos.kills FLOW PLACE KILLS [SEED]

PLACE is a local folder or `s3://BUCKET/PREFIX`. This process imports everything, does no work
itself, and forks a child for each run; a child is ended by SIGKILL after a random time, within what
a whole run takes. Every third trial has two or three runs at once, of which all are killed but, at
times, one. Then the flow runs once more, and its tables are held against the source. Models and
decoding processes are stand-ins; stores, threads, databases and files are real.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clipcap import leases, storage
from tests.chaos import standins, world
from tests.chaos.flows import check, prepared, run, start_captioner
from tests.chaos.store import Store
from tests.chaos.world import Folder, World
from tests.forks import forked, import_here

PICTURES = 6


@dataclass
class Told:
    """What came of the trials."""

    flow: str
    trials: int = 0
    runs: int = 0
    killed: int = 0
    refused: int = 0
    together: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def main(flow: str, place: str, kills: int, seed: int = 0) -> Told:
    """Kill a flow again and again, and look what it leaves."""
    draw, began, told = random.Random(seed), time.perf_counter(), Told(flow)
    with tempfile.TemporaryDirectory() as models, standins.models_installed():
        made = World(Store(), Folder.made(Path(models)), name=seed, root=_root(place))
        if flow == "train":
            _require(forked(lambda: start_captioner(made)), "no captioner to start from")
        _require(
            forked(lambda: _filled(made, with_texts=flow == "train")),
            "the source could not be written",
        )
        _note(made)
        _require(forked(lambda: prepared(made, flow, draw)), "no beginning")
        _warmed(flow, made)
        whole_s = _timed(lambda: prepared(made, flow, random.Random(seed)), flow, made)
        while told.killed < kills:
            _trial(told, made, told.trials, draw, whole_s)
    told.seconds = time.perf_counter() - began
    return told


def _root(place: str) -> str:
    return f"{storage.canonical(place)}/"


def _warmed(flow: str, made: World) -> None:
    """Import in this process all that a run imports as it goes: children need not, each again."""
    names = made.folder.path / "modules.json"

    def noted() -> None:
        before = set(sys.modules)
        run(flow, made)
        names.write_text(json.dumps(sorted(set(sys.modules) - before)))

    _require(forked(noted), "a run failed that nobody killed")
    import_here(json.loads(names.read_text()))


def _timed(before: Callable[[], None], flow: str, made: World) -> float:
    _require(forked(before), "what a trial begins with could not be made")
    began = time.perf_counter()
    _require(forked(lambda: run(flow, made)), "a run failed that nobody killed")
    return time.perf_counter() - began


def _trial(told: Told, made: World, number: int, draw: random.Random, whole_s: float) -> None:
    flow, seed = told.flow, draw.randrange(2**30)
    if flow in ("shard", "nightly"):
        _change(made, draw)
    _require(forked(lambda: prepared(made, flow, random.Random(seed))), "no beginning")
    count = 1 + (number % 3 == 2) * draw.randint(1, 2)
    spared = draw.random() < 0.3 if count > 1 else False
    children = [_begun(lambda: run(flow, made)) for _ in range(count)]
    ends = [draw.uniform(0, 1.05 * whole_s * (1 + (count - 1) / 2)) for _ in children]
    began = time.perf_counter()
    for child, end in sorted(zip(children[spared:], ends, strict=False), key=lambda one: one[1]):
        time.sleep(max(began + end - time.perf_counter(), 0))
        os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    told.trials += 1
    told.runs += count + 1
    told.together += count > 1
    told.killed += codes.count(-signal.SIGKILL)
    told.refused += codes.count(1)
    where = f"trial {number}: {codes}, ends {[round(end, 3) for end in ends]} of {whole_s:.3f}"
    for work, what in (
        (lambda: run(flow, made), "the rerun"),
        (lambda: check(flow, made), "the check"),
    ):
        if forked(partial(_traced, work)):
            told.problems.append(f"{where}: {what} failed")


def _traced(work: Callable[[], object]) -> None:
    try:
        work()
    except BaseException:
        traceback.print_exc()
        raise


def _begun(work: Callable[[], object]) -> int:
    """Begin with a child that may be killed; return its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a run among others is refused for
        work()
    except BaseException:  # noqa: BLE001 - the child must end here whatever happens
        os._exit(1)
    os._exit(0)


def _require(code: int, what: str) -> None:
    if code:
        sys.exit(what)


def _filled(made: World, *, with_texts: bool) -> None:
    for number in range(PICTURES):
        made.put(f"{number}.png", number + 1)
        if with_texts:
            text = f"a {'cat' if number % 3 else 'dog'}."
            storage.write(f"{made.source}/{number}.txt", text.encode())
    made.put("rot.png", world.BROKEN)


def _note(made: World) -> None:
    """Know in this process what `_filled` wrote in a child."""
    made.bucket = {f"{number}.png": number + 1 for number in range(PICTURES)} | {"rot.png": 0}


def _change(made: World, draw: random.Random) -> None:
    """Change the source: a child writes, this process only knows it."""
    path, colour = f"{draw.randrange(PICTURES)}.png", draw.randrange(1, 250)
    gone = f"{draw.randrange(PICTURES)}.png"

    def change() -> None:
        made.put(path, colour)
        if gone != path:
            made.remove(gone)

    _require(forked(change), "the source could not be changed")
    made.bucket[path] = colour
    if gone != path:
        made.bucket.pop(gone, None)


if __name__ == "__main__":
    os.environ[leases.SWITCH] = "off"  # runs overlap here
    told = main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    json.dump(vars(told), sys.stdout, indent=1)
