"""A process that takes a lease again and again, and says whether it was ever not alone.

    python -m tests.racing OUT FOLDER ROUNDS        takes it ROUNDS times
    python -m tests.racing OUT FOLDER hold          takes it once, says so, and holds it for ever

While it holds, a file stands in FOLDER that only one process can make.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from clipcap import leases
from clipcap.errors import LeaseError

TIMES = leases.Times(beat_s=0.3, quiet_s=1.5, watch_s=1.0)


def race(out: str, folder: Path, rounds: int) -> dict[str, int]:
    """Take the lease; return how often it was held, refused, and held by two at once."""
    told = {"held": 0, "refused": 0, "together": 0}
    inside = folder / "inside"
    for number in range(rounds):
        try:
            with leases.held(out, what="race", run_id=str(number), times=TIMES):
                told["held"] += 1
                with suppress(FileExistsError):
                    inside.touch(exist_ok=False)
                    time.sleep(0.002)
                    inside.unlink()
                    continue
                told["together"] += 1
        except LeaseError:
            told["refused"] += 1
    return told


if __name__ == "__main__":
    if sys.argv[3] == "hold":
        with leases.held(sys.argv[1], what="hold", run_id="held", times=TIMES):
            sys.stdout.write("held\n")
            sys.stdout.flush()
            time.sleep(600)
    json.dump(race(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])), sys.stdout)
