"""How many images of which size in; what a first night of them takes and costs, as a table, out.

    python -m bench.capacity 1e6 1e8 1e10
    python -m bench.capacity 3e7 --image-bytes 800000 --cpus 64 --embedded 900 --captioned 120

Rates are images in a CPU second, as `bench/README.md` has them for ViT-B-32 in bf16 and GPT-2 small
with five beams; those of other machines and models come from `clipcap bench`. Requests for a shard
are those of `python -m bench.requests`, with 16 MiB for each part of a tar.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from clipcap.planning import PackSettings
from clipcap.plans import task_count
from flows.settings import NightlySettings

PART_BYTES: Final = 16 * 2**20
PUTS_OF_A_SHARD: Final = 6
GETS_OF_A_SHARD: Final = 31
TASKS_OF_A_NIGHT: Final = 8
TASK_BYTES: Final = 20_000  # of Prefect's database
LIST_PAGE: Final = 1_000
ROW_BYTES: Final = 2_000  # of an image in all tables, with an embedding of 512 numbers
LISTED_BYTES: Final = 2_400  # of a shard and its tables in `_manifests`
COMPARED_S: Final = 3.6e-6
DOLLARS_OF_A_PUT: Final = 0.005 / 1_000  # and of a LIST
DOLLARS_OF_A_GET: Final = 0.0004 / 1_000


@dataclass(frozen=True, slots=True)
class Rates:
    """What images are like, what a CPU does in a second, and what an hour of it costs."""

    image_bytes: int = 200_000
    cpus: int = 16
    taken_in: float = 210
    embedded: float = 17.7
    captioned: float = 7.7
    labelled: float = 34_800
    dollars_an_hour: float = 0.04


def rows(images: float, rates: Rates) -> dict[str, str]:
    """Return what a first night of so many images takes."""
    pack = PackSettings()
    per_shard = max(min(pack.max_bytes // rates.image_bytes, pack.max_images), 1)
    shards = math.ceil(images / per_shard)
    parts = math.ceil(min(per_shard * rates.image_bytes, pack.max_bytes) / PART_BYTES)
    here = NightlySettings().shards_per_partition
    tasks = 4 * task_count(shards, here) + TASKS_OF_A_NIGHT
    lists = images / LIST_PAGE
    whole = parts == 1  # else it is begun and ended as well, and was counted as one request
    puts = shards * (PUTS_OF_A_SHARD + (0 if whole else parts + 1))
    gets = shards * (GETS_OF_A_SHARD + parts - 1)
    stages = (rates.taken_in, rates.embedded, rates.captioned, rates.labelled)
    hours = [images / rate / 3_600 for rate in stages]
    requests = puts * DOLLARS_OF_A_PUT + gets * DOLLARS_OF_A_GET
    return {
        "shards": two(shards),
        "task runs, Prefect's database": f"{tasks:,}, {two(tasks * TASK_BYTES / 1e6)} MB",
        "LIST of the source": f"{two(lists)}: ${two(lists * DOLLARS_OF_A_PUT)}",
        "GET of images": f"{two(images)}: ${two(images * DOLLARS_OF_A_GET)}",
        "PUT and GET of the output": f"{two(puts)} and {two(gets)}: ${two(requests)}",
        "CPU hours: taking in, embedding, captions, labels": " + ".join(map(two, hours)),
        f"hours on {rates.cpus} CPUs": two(sum(hours) / rates.cpus),
        "dollars of CPU": f"${two(sum(hours) * rates.dollars_an_hour)}",
        "GB of tars, of tables": f"{two(images * rates.image_bytes / 1e9)}, "
        f"{two(images * ROW_BYTES / 1e9)}",
        "comparing the listing, each night": f"{two(images * COMPARED_S)} CPU s",
        "the list of objects, each night": f"{two(shards * LISTED_BYTES / 1e6)} MB",
    }


def two(value: float) -> str:
    """Return a number with the two digits that such sums are worth."""
    if not value:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return f"{rounded:,.{max(digits, 0)}f}"


def table(counts: Sequence[float], rates: Rates) -> list[str]:
    """Return the lines of a Markdown table."""
    columns = [rows(count, rates) for count in counts]
    head = ["first night of", *(f"{two(count)} images" for count in counts)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *(column[name] for column in columns)] for name in columns[0]]
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Print the table."""
    usual = Rates()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=float, nargs="+")
    for name in Rates.__slots__:
        value = getattr(usual, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    counts = given.pop("images")
    print("\n".join(table(counts, Rates(**given))))


if __name__ == "__main__":
    main()
