"""METEOR and SPICE: a figure by the real programs, or a reason, never a number in its place."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from clipcap.metrics import java

CAPTIONS, REFERENCES = ["a dog runs", "a cat"], [["the dog runs"], ["one cat", "cats"]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pycocoevalcap with the jars' names, and a `java` that answers as `answers` says."""
    folder = tmp_path / "pycocoevalcap"
    for name in ("meteor/meteor-1.5.jar", "spice/spice-1.0.jar"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    (folder / "__init__.py").write_text("raise SystemExit('never imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    return folder


def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in the place of java."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_without_the_package_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for found in (java.meteor(CAPTIONS, REFERENCES), java.spice(CAPTIONS, REFERENCES)):
        assert found.value is None
        assert found.per_image is None
        assert "`pip install pycocoevalcap`" in found.reason


def test_without_java_there_is_a_reason(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(package))
    assert java.meteor(CAPTIONS, REFERENCES) == java.JavaScore(
        None, reason="there is no java on this machine"
    )


def test_spice_without_its_parser_names_the_files_and_starts_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(tmp_path, monkeypatch, f"touch {tmp_path}/started")
    found = java.spice(CAPTIONS, REFERENCES)
    assert found.value is None
    assert "stanford-corenlp-3.6.0.jar" in found.reason
    assert not (tmp_path / "started").exists()


def test_meteor_takes_the_figures_as_they_are_answered(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        f"tee -a {tmp_path}/said | while read line; do case $line in SCORE*) echo '1 2 3';; "
        "*) printf '0.5\\n0.25\\n0.4\\n';; esac; done"
    )
    answers(tmp_path, monkeypatch, script)
    assert java.meteor(CAPTIONS, REFERENCES) == java.JavaScore(0.4, [0.5, 0.25])
    assert (tmp_path / "said").read_text().splitlines() == [
        "SCORE ||| the dog runs ||| a dog runs",
        "SCORE ||| one cat ||| cats ||| a cat",
        "EVAL ||| 1 2 3 ||| 1 2 3",
    ]


def test_spice_reads_what_the_program_writes_and_opens_java_for_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "spice" / "lib").mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (package / "spice" / "lib" / name).write_bytes(b"")
    rows = '[{"image_id":1,"scores":{"All":{"f":0.5}}},{"image_id":0,"scores":{"All":{"f":0.1}}}]'
    answers(
        tmp_path,
        monkeypatch,
        'case "$JDK_JAVA_OPTIONS" in *--add-opens=java.base/java.lang=ALL-UNNAMED*) ;; *) exit 3;; '
        f"esac\nwhile [ $1 != -out ]; do shift; done\necho '{rows}' > $2",
    )
    found = java.spice(CAPTIONS, REFERENCES)
    assert found.value == pytest.approx(0.3)
    assert found.per_image == [0.1, 0.5]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo boom >&2; exit 7", "ended with 7: boom"),
        ("cat > /dev/null; echo 1", "must answer 2 lines, but said 1"),
        ("cat > /dev/null; printf 'a\\nb\\n'", "must answer 3 lines"),
        ("exec sleep 60", "did not end within 1 s"),
    ],
)
def test_a_program_that_fails_or_hangs_gives_a_reason(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    answers(tmp_path, monkeypatch, script)
    found = java.meteor(CAPTIONS, REFERENCES, deadline_s=1.0)
    assert found.value is None
    assert words in found.reason


def test_meteor_has_the_published_figures_where_it_is_installed() -> None:
    data = Path(__file__).parents[3] / "shared" / "data" / "metrics" / "nlg_eval"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/metrics, which is not here")
    names = ("hyp.txt", "ref1.txt", "ref2.txt")
    captions, *lists = ((data / name).read_text().splitlines() for name in names)
    found = java.meteor(captions, [list(texts) for texts in zip(*lists, strict=True)])
    if found.value is None:
        pytest.skip(f"no METEOR: {found.reason}")
    assert found.value == pytest.approx(0.295797, abs=5e-7)
