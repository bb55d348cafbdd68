"""The deployment guide can be typed as it stands: every variable of a command is set before it."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.deployments.files import README

HEREDOC = re.compile(r"<<END\n(.*?)\n *END", re.S)


def parts() -> dict[str, list[str]]:
    """Return the commands of each part; the numbered steps are one, typed in their order.

    What runs images begins with making them.
    """
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", README, flags=re.M)[1:]:
        title = section.splitlines()[0]
        name = "Steps" if title[0].isdigit() else title
        found.setdefault(name, []).extend(re.findall(r"```sh\n(.*?)```", section, re.S))
    for name in ("Docker", "Kubernetes"):
        found[name] = found["Images"] + found[name]
    return {name: blocks for name, blocks in found.items() if blocks}


each = pytest.mark.parametrize("part", parts())


@each
def test_every_variable_is_set_before_it_is_used(part: str) -> None:
    text = "\n".join(parts()[part])
    files = " ".join(HEREDOC.findall(text))
    if "places.env" in text:  # what step 4 wrote
        files += " ".join(HEREDOC.findall("\n".join(parts()["Steps"])))
    known = set(re.findall(r"^\s*(\w+)=", files, re.M))
    for line in text.splitlines():
        used = set(re.findall(r"\$\{?([A-Z_]+)", line))
        for words in re.findall(r"export (.*)", line):
            known |= set(re.findall(r"(\w+)=", words))
        assert used <= known, line


@each
def test_a_shell_understands_the_commands(part: str) -> None:
    text = "\n".join(re.sub(r"^  ", "", block, flags=re.M) for block in parts()[part])
    subprocess.run(["sh", "-n"], input=text, text=True, check=True, timeout=30)


def test_keys_in_quotes_reach_the_commands_of_step_4() -> None:
    """`worker.env` is read by systemd and by a shell: quotes mean the same to both."""
    (line,) = re.findall(r"^set -a; .*; set \+a$", README, re.M)
    typed = line.replace("sudo cat /etc/clipcap/worker.env", "printf \"KEY='a&b c'\"")
    typed = re.sub(r"\. /etc\S+;", "", typed)
    done = subprocess.run(
        ["sh", "-c", f"{typed}; env"], capture_output=True, text=True, check=True, timeout=30
    )
    assert "KEY=a&b c" in done.stdout.splitlines()


def test_the_repository_of_the_service_user_is_asked_as_that_user() -> None:
    """Git refuses to read a repository of somebody else ("dubious ownership")."""
    typed = "\n".join(block for blocks in parts().values() for block in blocks)
    asked = re.findall(r"^.*\bgit (?!clone).*$", typed, re.M)
    assert asked
    assert [line for line in asked if "sudo -u clipcap git " not in line] == []


@pytest.mark.parametrize("registry", ["", "here/us/"])
def test_what_is_built_is_pushed_where_other_machines_pull_it_from(registry: str) -> None:
    (images,) = parts()["Images"]
    typed = re.sub(r"REGISTRY= .*", f"REGISTRY={registry}", images)
    done = subprocess.run(
        ["sh", "-euc", f"docker() {{ echo $@; }}; sudo() {{ echo 4f2a; }}; {typed}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    names = [f"{registry}clipcap:4f2a-{target}" for target in ("cpu", "gpu")]
    said = done.stdout.splitlines()
    assert [line.split()[-2] for line in said if line.startswith("build ")] == names
    assert said[2:] == ([f"push {name}" for name in names] if registry else [])


def test_the_folder_of_local_outputs_is_made_before_a_unit_lets_runs_write_there() -> None:
    (made,) = re.findall(r"^sudo install -d -o clipcap -g clipcap (.*)$", README, re.M)
    assert "/srv/clipcap" in made.split()
