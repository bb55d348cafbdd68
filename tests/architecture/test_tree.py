"""Names and sizes of files, and what must not be written in them."""

from __future__ import annotations

import ast
import pkgutil

from tests.architecture.tree import ROOT, dotted, functions, length, sources

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "process", "misc"}
BROAD_ERRORS = {"Exception", "BaseException"}
UNSAFE_CALLS = {"torch.load", "pickle.load", "pickle.loads", "eval", "exec"}
MAY_PRINT = ("flows/cli.py", "flows/commands/")


def public_names(package: str) -> set[str]:
    """Return the public files of a folder."""
    folder = str(ROOT / package)
    return {name for _, name, _ in pkgutil.iter_modules([folder]) if not name.startswith("_")}


def test_every_folder_of_sources_is_a_package() -> None:
    """A folder without `__init__.py` is left out of the wheel and of the import contracts."""
    folders = {(ROOT / path).parent for path in sources()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_each_file_says_first_what_goes_in_and_what_comes_out() -> None:
    assert [path for path, module in sources().items() if not ast.get_docstring(module)] == []


def test_no_file_is_long() -> None:
    lengths = {path: length(path) for path in sources()}
    assert {path: n for path, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_no_function_is_long() -> None:
    lengths = {
        f"{path}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, module in sources().items()
        for node in functions(module)
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def test_a_file_is_named_for_what_it_holds() -> None:
    parts = {path: set(path.removesuffix(".py").split("/")) for path in sources()}
    assert [path for path, names in parts.items() if names & EMPTY_NAMES] == []


def test_only_named_errors_are_caught() -> None:
    found = []
    for path, module in sources().items():
        for node in ast.walk(module):
            if isinstance(node, ast.ExceptHandler):
                names = (
                    {dotted(name) for name in ast.walk(node.type)} if node.type else BROAD_ERRORS
                )
                found += [f"{path}:{node.lineno}"] if names & BROAD_ERRORS else []
    assert found == []


def is_safe(call: ast.Call) -> bool:
    """Tell whether a call says itself that nothing is run."""
    said = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    return dotted(call.func) == "torch.load" and said.get("weights_only") is True


def test_nothing_is_asserted_unpickled_or_printed() -> None:
    found = []
    for path, module in sources().items():
        refused = UNSAFE_CALLS if path.startswith(MAY_PRINT) else UNSAFE_CALLS | {"print"}
        nodes = [node for node in ast.walk(module) if isinstance(node, ast.Call | ast.Assert)]
        for node in nodes:
            if isinstance(node, ast.Assert) or (dotted(node.func) in refused and not is_safe(node)):
                found.append(f"{path}:{node.lineno}")
    assert found == []


def test_stages_tasks_and_flows_have_the_same_names() -> None:
    """Learn the six words, find any file: what has a flow has a task and a stage of that name."""
    stages, tasks, flows = (public_names(name) for name in ("clipcap/stages", "tasks", "flows"))
    assert tasks & stages
    assert flows & stages <= tasks
    assert flows & tasks <= stages
