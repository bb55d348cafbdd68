"""The pinned versions in, those with a known weakness out: pip-audit, and what its answer is worth.

pip-audit ends well too where its service knew nothing of any package, or could not be asked. Here
that is said: it fails nobody who is offline, and it is no clean bill of health.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "build" / "audit" / "bin" / "pip-audit"  # `make audit`
LIMIT_S = 300.0
ACCEPTED: Mapping[str, str] = {}
"""Number of a weakness to why it does not concern this project."""


def told(answer: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return the weaknesses in an answer of pip-audit, and how many packages it knew."""
    known = [one for one in answer["dependencies"] if "skip_reason" not in one]
    found = [
        f"{one['name']} {one['version']}: {weakness['id']}"
        f" (mended in {', '.join(weakness['fix_versions']) or 'no version'})"
        for one in known
        for weakness in one["vulns"]
        if not {weakness["id"], *weakness.get("aliases", ())} & set(ACCEPTED)
    ]
    return found, len(known)


def asked(program: Path, pinned: Path) -> tuple[list[str], str]:
    """Run pip-audit; return the weaknesses, and what the answer is worth."""
    if not program.exists():
        return [], "NOT AUDITED: pip-audit is not installed and could not be."
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        what = (str(program), "--requirement", str(pinned), "--no-deps", "--disable-pip")
        how = ("--vulnerability-service", "osv", "--progress-spinner", "off", "--timeout", "10")
        command = [*what, *how, "--format", "json", "--output", str(answer)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return [], f"NOT AUDITED: the service did not answer within {LIMIT_S:.0f} s."
        if not answer.exists():
            said = done.stderr.strip().rpartition("\n")[2]
            return [], f"NOT AUDITED: the service could not be asked. {said}"
        found, known = told(json.loads(answer.read_text()))
    if not known:
        return [], "NOT AUDITED: the service knows none of the packages."
    return found, f"{known} packages audited, {len(found)} known weaknesses."


def main(program: Path = PROGRAM, pinned: Path = ROOT / "constraints.txt") -> int:
    """Ask, and say what came; return 1 where there is a weakness."""
    found, worth = asked(program, pinned)
    sys.stdout.write("\n".join([*found, worth]) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
