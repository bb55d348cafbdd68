"""What no line does: run what a file says, loosen a check, write a cell unguarded."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

SOURCES = sorted(
    path for name in ("clipcap", "tasks", "flows") for path in (ROOT / name).rglob("*.py")
)
MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    "webdataset",  # tars are read by code of our own; its decoders run what a file says
}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"),
    *("torch.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"),
    *("ssl._create_unverified_context", "Markup", "markupsafe.Markup", "shutil.unpack_archive"),
    *("csv.writer", "csv.DictWriter", "pyarrow.csv.write_csv", "pa.csv.write_csv"),
}
"""A call of one of these needs more than a look: of `csv.writer`, guard cells that begin with one
of `=+-@`, a tab or a return; of `torch.load`, `weights_only=True`."""
METHODS = {"to_csv", "write_csv", "extractall", "to_pickle"}
KEYWORDS = {
    "shell": False,
    "allow_pickle": False,
    "weights_only": True,
    "trust_remote_code": False,
    "persist_result": False,
    "cache_result_in_memory": True,
    "autoescape": True,
    "verify": True,
}
"""Keyword to the one value that it may have, where it is written down."""


def dotted(node: ast.AST) -> str:
    """Return the name of a function as it is written."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def imported(node: ast.AST) -> list[str]:
    """Return the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or node.level:
        return []
    is_error = [alias.name for alias in node.names] == ["UnpicklingError"]
    return [] if is_error else [node.module or ""]


def wrong(source: str) -> Iterator[str]:
    """Yield what is forbidden in a source."""
    for node in ast.walk(ast.parse(source)):
        for module in imported(node):
            if module in MODULES or module.partition(".")[0] in MODULES:
                yield f"{module} (line {getattr(node, 'lineno', 0)})"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        has_weights = any(word.arg == "weights_only" for word in node.keywords)
        if (name in CALLS and not (name == "torch.load" and has_weights)) or is_method:
            yield f"{name} (line {node.lineno})"
        for word in node.keywords:
            if (
                word.arg in KEYWORDS
                and getattr(word.value, "value", None) is not KEYWORDS[word.arg]
            ):
                yield f"{word.arg} (line {node.lineno})"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_forbidden_is_done(path: Path) -> None:
    assert list(wrong(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from pickle import loads",
            "import webdataset",
            "import cloudpickle as c",
        ),
        *("eval('1')", "exec(text)", "os.system('ls')", "yaml.load(text)", "torch.load(path)"),
        *(
            "torch.load(path, weights_only=False)",
            "run('ls', shell=True)",
            "flow(persist_result=True)",
        ),
        *("np.load(path, allow_pickle=True)", "from_pretrained(a, trust_remote_code=True)"),
        *(
            "csv.writer(stream)",
            "frame.to_csv(path)",
            "tar.extractall(folder)",
            "run(a, shell=wish)",
        ),
        *("Environment(autoescape=False)", "get(url, verify=False)"),
    ],
)
def test_each_of_them_would_be_found(line: str) -> None:
    assert list(wrong(line))


def test_what_is_allowed_is_not_found() -> None:
    allowed = (
        "model.eval()\ntorch.load(a, weights_only=True)\nre.compile('a')\nrun(['ls'])\nimport csv"
    )
    allowed += "\nfrom pickle import UnpicklingError"
    assert list(wrong(allowed)) == []


def test_no_template_leaves_anything_unescaped() -> None:
    pages = sorted((ROOT / "clipcap").rglob("*.html"))
    assert len(pages) > 5
    for page in pages:
        assert re.search(r"\|\s*safe\b|autoescape|{%-?\s*raw", page.read_text()) is None, page.name


def test_every_flow_and_task_keeps_no_result() -> None:
    """Results would be pickled, and a cache hit on them runs what the pickle says."""
    from prefect import Flow, Task
    from prefect.cache_policies import NO_CACHE

    found = [
        value
        for folder in ("flows", "tasks")
        for path in sorted((ROOT / folder).glob("[a-z]*.py"))
        for value in vars(__import__(f"{folder}.{path.stem}", fromlist=["x"])).values()
        if isinstance(value, Flow | Task)
    ]
    assert len({one.name for one in found}) > 12
    for one in found:
        assert one.persist_result is False, one.name
        if isinstance(one, Task):
            assert one.cache_policy is NO_CACHE, one.name


def test_webdataset_is_safe_for_whoever_imports_it_after_us() -> None:
    """Then it opens no `pipe:` and its decoders run no pickles."""
    code = "import clipcap, os; print(os.environ['WDS_SECURE'])"
    around = {name: value for name, value in os.environ.items() if name != "WDS_SECURE"}
    run = subprocess.run([sys.executable, "-c", code], env=around, capture_output=True, check=True)
    assert run.stdout.strip() == b"1"
