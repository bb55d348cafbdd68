"""A training at a terminal shows a bar of its steps; elsewhere nobody is told of every step."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

from clipcap import progress
from clipcap.progress import Progress
from tests.command import clipcap
from tests.nights import Tiny, things

STEPS = 7


def words(out: Path, tiny: Tiny, name: str) -> list[str]:
    """Return the words of a short training."""
    found = ["train", out, "--name", name, "--steps", STEPS, "--model", tiny.encoder.model]
    return [*map(str, found), "--no-server"]


def test_a_training_at_a_terminal_shows_how_many_steps_are_done(tmp_path: Path, tiny: Tiny) -> None:
    out = things(tmp_path, tiny, 6)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "clipcap", *words(out, tiny, "seen")]
    env = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65_536):
            seen += part
    except OSError:  # Linux says so where others read nothing: the other end is closed
        pass
    os.close(ours)
    text = seen.decode()
    assert process.wait() == 0, text
    assert f"{STEPS}/{STEPS}" in text
    assert "steps" in text
    assert "seen trained in" in text


def test_without_a_terminal_no_line_is_written_for_every_step(tmp_path: Path, tiny: Tiny) -> None:
    out = things(tmp_path, tiny, 6)
    ended = clipcap(*words(out, tiny, "unseen"))
    assert (ended.code, "unseen trained in" in ended.out) == (0, True), ended.err
    assert "Progress(" not in ended.out + ended.err
    library = logging.getLogger("clipcap.steps")
    assert not library.handlers
    progress.tell(Progress(1, 2, 0.5, 0.1))  # nobody listens, and nothing is raised
