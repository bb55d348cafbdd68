"""The documentation says what is true: links, commands, options, tables, errors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from clipcap import errors
from flows.cli import COMMANDS, Commands

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "bench", "deployments")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def typed(program: str) -> list[str]:
    """Return every command of a program that the README and the deployment guide show."""
    text = "".join((ROOT / page).read_text() for page in ("README.md", "deployments/README.md"))
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = [
        link for link in LINK.findall(page.read_text()) if not (page.parent / link.strip()).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("line", typed("clipcap"))
def test_a_command_in_the_readme_exists_with_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words == ["--help"]:
        return
    group = Commands()
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, f"clipcap has no command {words[0]}"
    if isinstance(command, click.Group) and words[1:] and words[1] in command.commands:
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word not in known]
    assert unknown == []


@pytest.mark.parametrize("line", typed("make"))
def test_a_target_in_the_readme_exists(line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_nobody_is_told_to_install_a_package_of_our_name() -> None:
    """A registry may have a stranger's of that name: it is installed from the checkout."""
    sources = [
        path for name in ("clipcap", "tasks", "flows") for path in (ROOT / name).rglob("*.py")
    ]
    asked = re.compile(r"pip install[^\n`]*[ '\"]clipcap\b(?!/)")
    assert [str(path) for path in [*PAGES, *sources] if asked.search(path.read_text())] == []


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"clipcap {name}" not in text] == []


def test_the_table_of_places_names_folders_that_exist() -> None:
    rows = re.findall(r"^\| .* \| `(clipcap/[a-z]+)/<name>", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 6
    assert all((ROOT / folder).is_dir() for folder in rows)


def test_every_error_and_reason_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    classes = [
        found
        for found in vars(errors).values()
        if isinstance(found, type)
        and issubclass(found, errors.ClipcapError)
        and found is not errors.ImageError
    ]
    for found in classes:
        rows = [line for line in text.splitlines() if f"`{found.__name__}`" in line]
        assert any(line.startswith(f"| {found.exit_code} |") for line in rows), found.__name__
    assert [reason for reason in errors.REASONS if f"`{reason}`" not in text] == []
    marked = set(re.findall(r"`([a-z_]+)`\*", text))
    assert marked == errors.RETRYABLE_REASONS
