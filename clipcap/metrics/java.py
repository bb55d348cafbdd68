"""Captions and references in, METEOR and SPICE out, or why there is no figure: never a 0 for that.

They are programs in Java that the package pycocoevalcap brings (the extra `metrics`). They are
started without it, under a deadline, and ask nothing of any network: SPICE runs only where somebody
has put the parser it needs beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clipcap.metrics.tokenizer import tokenize

_METEOR: Final = "meteor/meteor-1.5.jar"
_SPICE: Final = "spice/spice-1.0.jar"
_PARSER: Final = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_DEADLINE_S: Final = 1_800.0
_OPENED: Final = " ".join(  # what SPICE reaches into and newer Java closes; Java 8 ignores it
    f"--add-opens={package}=ALL-UNNAMED"
    for package in (
        "java.base/java.lang", "java.base/java.math", "java.base/java.util",
        "java.base/java.util.concurrent", "java.base/java.net", "java.base/java.text",
        "java.sql/java.sql",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JavaScore:
    """A figure, and its value for each caption; or the reason why there is none."""

    value: float | None
    per_image: Sequence[float] | None = None
    reason: str = ""


class _NotComputedError(Exception):
    """Says why there is no figure; never leaves this module."""


def meteor(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, deadline_s: float = _DEADLINE_S
) -> JavaScore:
    """Return METEOR 1.5, 0 to 1."""
    try:
        jar = _jar(_METEOR)
        lines = [
            " ||| ".join(("SCORE", *map(_words, texts), _words(caption)))
            for caption, texts in zip(captions, references, strict=True)
        ]
        command = ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        counted = _answers(command, lines, len(lines), deadline_s)
        answers = _answers(command, [" ||| ".join(("EVAL", *counted))], len(lines) + 1, deadline_s)
        *scores, whole = map(float, answers)
    except _NotComputedError as error:
        return JavaScore(None, reason=str(error))
    except ValueError as error:
        return JavaScore(None, reason=f"METEOR gave something else than numbers: {error}")
    return JavaScore(whole, scores)


def spice(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, deadline_s: float = _DEADLINE_S
) -> JavaScore:
    """Return SPICE 1.0, 0 to 1."""
    rows = [
        {"image_id": at, "test": caption, "refs": list(texts)}
        for at, (caption, texts) in enumerate(zip(captions, references, strict=True))
    ]
    try:
        jar = _jar(_SPICE)
        _require_parser(jar.parent / "lib")
        with tempfile.TemporaryDirectory(prefix="clipcap-spice-") as folder:
            asked, said = Path(folder, "in.json"), Path(folder, "out.json")
            asked.write_text(json.dumps(rows), "utf-8")
            files = [str(asked), "-cache", folder, "-out", str(said), "-subset", "-silent"]
            _run(["-Xmx8G", "-jar", str(jar), *files], "", deadline_s)
            found: list[dict[str, Any]] = json.loads(said.read_text("utf-8"))
        by_image = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in found}
        scores = [by_image[at] for at in range(len(rows))]
    except _NotComputedError as error:
        return JavaScore(None, reason=str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return JavaScore(None, reason=f"SPICE gave no scores that can be read: {error!r}")
    return JavaScore(sum(scores) / len(scores), scores)


def _words(text: str) -> str:
    return " ".join(tokenize(text)).replace("|||", "").replace("  ", " ")


def _jar(name: str) -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise _NotComputedError("pycocoevalcap is not installed: `pip install pycocoevalcap`")
    if shutil.which("java") is None:
        raise _NotComputedError("there is no java on this machine")
    jar = Path(next(iter(spec.submodule_search_locations)), name)
    if not jar.is_file():
        raise _NotComputedError(f"{jar} is not there: pycocoevalcap came without it")
    return jar


def _require_parser(folder: Path) -> None:
    missing = [name for name in _PARSER if not (folder / name).is_file()]
    if missing:
        raise _NotComputedError(
            f"SPICE needs {' and '.join(missing)} in {folder}; nothing is fetched"
        )


def _answers(
    arguments: Sequence[str], lines: Sequence[str], count: int, deadline_s: float
) -> list[str]:
    answers = _run(arguments, "".join(f"{line}\n" for line in lines), deadline_s).splitlines()
    if len(answers) != count:
        raise _NotComputedError(f"java must answer {count} lines, but said {len(answers)}")
    return answers


def _run(arguments: Sequence[str], text: str, deadline_s: float) -> str:
    """Run Java and return what it prints."""
    try:
        done = subprocess.run(
            ["java", *arguments],
            input=text.encode(),
            capture_output=True,
            timeout=deadline_s,
            env={**os.environ, "JDK_JAVA_OPTIONS": _OPENED, "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _NotComputedError(f"java did not end within {deadline_s:.0f} s") from error
    except OSError as error:
        raise _NotComputedError(f"java cannot be started: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _NotComputedError(f"java ended with {done.returncode}: {said[-1] if said else ''}")
    return done.stdout.decode(errors="replace")
