"""Nights over made-up pictures in; requests to the store that a night needs, by what it does, out.

    python -m bench.requests

A store in memory counts every call of `clipcap.storage`: a listing counts one page for each 1,000
objects, a stream one request. Nights of different sizes give the slopes: what a night costs by
itself, for each new shard, and for each shard that is there already.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from clipcap import leases, storage
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.nights import Tiny, draw, make_tiny

READS = ("read", "read_range", "read_part", "stream", "info")
WRITES = ("write", "create")
PER_SHARD = 2


def main() -> None:
    """Run nights, print Markdown rows."""
    os.environ[leases.SWITCH] = "off"
    with tempfile.TemporaryDirectory() as place:
        tiny = make_tiny(Path(place) / "models")
        first = {count: _night(Path(place), tiny, count)[0] for count in (4, 12)}
        again = {count: _night(Path(place), tiny, count)[1] for count in (4, 12)}
    print("| requests | a night by itself | for each new shard | for each shard that is there |")
    print("| --- | --- | --- | --- |")
    for kind in ("get", "put", "delete", "list"):
        new = (first[12][kind] - first[4][kind]) / 8
        old = (again[12][kind] - again[4][kind]) / 8
        print(f"| {kind} | {again[4][kind] - 4 * old:.0f} | {new - old:.1f} | {old:.2f} |")


def _night(place: Path, tiny: Tiny, shards: int) -> tuple[Counter[str], Counter[str]]:
    """Return the requests of a first night and of a third, in which nothing is new."""
    source, out = place / f"in-{shards}", f"{place}/out-{shards}-{os.urandom(4).hex()}"
    for n in range(PER_SHARD * shards):
        draw(source / f"{n:04d}.png", n)
    settings = NightlySettings(embed=tiny.encoder, caption=tiny.captioner)
    chosen = settings.model_dump(mode="json")
    chosen["label"]["label_sets"] = [tiny.label_set]
    chosen["shard"]["pack"]["max_images"] = PER_SHARD
    settings = NightlySettings.model_validate(chosen)
    told = [_counted(lambda: nightly.fn(str(source), out, settings), out) for _ in range(3)]
    return told[0], told[2]


def _counted(work: Callable[[], object], out: str) -> Counter[str]:
    """Return the requests for objects of the output, and those for the source."""
    found: Counter[str] = Counter()
    below = storage.canonical(out)
    kinds = dict.fromkeys(READS, "get") | dict.fromkeys(WRITES, "put")
    real: dict[str, Any] = {name: getattr(storage, name) for name in (*kinds, "delete")}

    def count(name: str) -> Callable[..., Any]:
        def call(url: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any of them
            found[kinds.get(name, "delete")] += str(url).startswith(below)
            return real[name](url, *args, **kwargs)

        return call

    def pages(url: str) -> Iterator[Any]:
        found["list"] += str(url).startswith(below)
        yield from listed(url)

    listed = storage.list_batches
    counted: dict[str, Any] = {name: count(name) for name in real} | {"list_batches": pages}
    with patch.multiple(storage, **counted):
        work()
    return found


if __name__ == "__main__":
    main()
