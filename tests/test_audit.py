"""The audit fails on a weakness, and passes neither silently nor proudly where it knew nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import audit

WEAK = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": ["CVE-1"]}


def answering(folder: Path, answer: dict[str, Any] | None) -> Path:
    """Return a program that answers as pip-audit does."""
    program = folder / "pip-audit"
    (folder / "answer").write_text(json.dumps(answer))
    write = 'while [ "$1" != --output ]; do shift; done; cp "$(dirname "$0")/answer" "$2"'
    program.write_text(f"#!/bin/sh\n{write if answer else 'echo no network >&2; exit 1'}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": [WEAK]}], 1, "a 1: PYSEC-1 (mended in 2)"),
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages audited, 0 known"),
        ([{"name": "a", "skip_reason": "not found"}], 0, "NOT AUDITED: the service knows none"),
        (None, 0, "NOT AUDITED: the service could not be asked. no network"),
    ],
)
def test_what_an_answer_is_worth(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answer: list[Any] | None,
    code: int,
    said: str,
) -> None:
    program = answering(tmp_path, None if answer is None else {"dependencies": answer})
    assert audit.main(program) == code
    assert said in capsys.readouterr().out


def test_a_weakness_that_was_looked_at_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-1": "is not used here"})
    answer = {"dependencies": [{"name": "a", "version": "1", "vulns": [WEAK]}]}
    assert audit.main(answering(tmp_path, answer)) == 0


def test_without_the_program_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert audit.main(tmp_path / "absent") == 0
    assert "NOT AUDITED" in capsys.readouterr().out
