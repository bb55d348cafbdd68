"""The repository's own source files, parsed, for the tests of this folder."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("clipcap", "tasks", "flows")


@cache
def sources() -> dict[str, ast.Module]:
    """Return every module of the packages, by its path from the root."""
    files = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_bytes()) for path in files}


def length(path: str) -> int:
    """Return the lines of one file."""
    return len((ROOT / path).read_bytes().splitlines())


def functions(module: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return all functions and methods of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(module) if isinstance(node, kinds)]


def dotted(node: ast.AST) -> str:
    """Return `torch.load` for the expression that means it, and "" for what is no name."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
        case _:
            return ""
