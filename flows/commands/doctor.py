"""`clipcap doctor`: a machine and, if given, a source and an output in; what is missing out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import click

import clipcap
from clipcap import conditions, hub, models, storage
from clipcap.errors import ClipcapError
from flows.commands._start import json_option, require_answer, server_url

_PACKAGES: Final = ("prefect", "torch", "open_clip_torch", "transformers", "pyarrow")
_MIN_PYTHON: Final = (3, 11)
_LITTLE_MEMORY_BYTES: Final = 3e9
_LITTLE_DISK_BYTES: Final = 5e9


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look gave; `warn` is worth knowing, `fail` keeps a run from working."""

    subject: str
    state: Literal["ok", "warn", "fail"]
    text: str


@click.command()
@json_option
@click.option("--source", help="Look whether it may be listed.")
@click.argument("out", required=False)
def doctor(out: str | None, source: str | None, *, as_json: bool) -> None:
    """Look whether everything a run needs is here.

    With OUT, look too whether it can be written to.
    """
    found = []
    for finding in findings(out, source):
        found.append(finding)
        if not as_json:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
            click.secho(f"{finding.state:<6}", fg=colour, nl=False)
            click.echo(f"{finding.subject:<16}{finding.text}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    if any(finding.state == "fail" for finding in found):
        raise click.exceptions.Exit(1)


def findings(out: str | None, source: str | None) -> Iterator[Finding]:
    """Look at one thing after the other."""
    yield _python()
    yield from _versions()
    yield _memory()
    yield _device()
    yield from _models()
    yield _disk(out)
    yield from _prefect()
    if source is not None:
        places = (source,)
        yield _tried("source", lambda: storage.require_bucket(*places), f"{source} may be listed")
    if out is not None:
        yield _output(out)


def _tried(subject: str, look: Callable[[], object], good: str) -> Finding:
    try:
        look()
    except ClipcapError as error:
        return Finding(subject, "fail", str(error))
    return Finding(subject, "ok", good)


def _output(out: str) -> Finding:
    try:
        found = conditions.kind(out)
    except ClipcapError as error:
        return Finding("output", "fail", str(error))
    means = f"its store {conditions.MEANING[found]}"
    if found == "honours":
        return Finding("output", "ok", f"{out} can be written to; {means}")
    none = "no leases and no Delta there (docs/leases.md)"
    return Finding("output", "warn", f"{out} can be written to, but {means}: {none}")


def _python() -> Finding:
    here = sys.version.split()[0]
    good = sys.version_info >= _MIN_PYTHON
    wanted = "" if good else f"; it must be {'.'.join(map(str, _MIN_PYTHON))} or newer"
    return Finding("python", "ok" if good else "fail", f"{here} ({sys.executable}){wanted}")


def _versions() -> Iterator[Finding]:
    yield Finding("clipcap", "ok", clipcap.__version__)
    for package in _PACKAGES:
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "fail", "not installed; `make setup` installs it")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    state: Literal["ok", "warn"] = "ok" if total >= _LITTLE_MEMORY_BYTES else "warn"
    return Finding("memory", state, f"{total / 1e9:,.1f} GB")


def _device() -> Finding:
    from clipcap.encoding import choose_device

    device = choose_device("auto")
    if device.type == "cpu":
        return Finding("device", "ok", f"no GPU: runs on {os.cpu_count()} CPU threads")
    return Finding("device", "ok", f"{device}")


def _models() -> Iterator[Finding]:
    yield _tried("encoder", lambda: models.encoder(models.BUNDLED), "the bundled one is whole")
    look = lambda: models.captioner_folder(models.BUNDLED)  # noqa: E731 - as above
    yield _tried("captioner", look, "the bundled one is whole")
    names = ", ".join(found.repository for found in hub.cached()) or "nothing"
    yield Finding("model cache", "ok", f"{hub.cache()} holds {names}")


def _disk(out: str | None) -> Finding:
    path = storage.local_path(out) if out else Path.cwd()
    while path is not None and not path.exists():
        path = path.parent
    if path is None:
        return Finding("disk", "ok", "the output is on a store")
    free = shutil.disk_usage(path).free
    state: Literal["ok", "warn"] = "ok" if free >= _LITTLE_DISK_BYTES else "warn"
    return Finding("disk", state, f"{free / 1e9:,.1f} GB free at {path}")


def _prefect() -> Iterator[Finding]:
    from prefect.context import get_settings_context

    yield Finding("prefect profile", "ok", get_settings_context().profile.name)
    url = server_url()
    if url is None:
        yield Finding("prefect server", "ok", "none is set: `clipcap run` runs here, unrecorded")
    else:
        yield _tried("prefect server", lambda: require_answer(url), f"{url} answers")
