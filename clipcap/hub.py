"""The name of a model repository or the URL of a folder in, a folder on this machine out.

The local cache comes first. Whether the hub can be reached is decided by one request of at most
`PROBE_S`, before any library starts its own retries (46.6 s in open_clip, 23.3 s in transformers).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from clipcap import alive, kept, storage
from clipcap.errors import HubError, NotFoundError, SettingsError
from clipcap.settings import digest

PROBE_S: Final = 1.4  # with imports around it an unreachable hub is told in under 2 s
_PIECE_BYTES: Final = 64 * 2**20  # bounds memory while a folder is fetched; one request each
_NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_REPOSITORY_FORM: Final = re.compile(f"{_NAME}(/{_NAME})?")
_LOG = logging.getLogger(__name__)

Choice = Callable[[list[str]], list[str]]
"""All file names of a repository in, the needed ones out; `SettingsError` if one is missing."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A repository that lies in the local cache."""

    repository: str
    folder: Path


def folder(repository: str, choose: Choice) -> Path:
    """Return a folder with the chosen files of a repository, from the cache if they are there.

    Raises:
        HubError: the files are not in the cache and the hub does not answer.
        SettingsError: there is no such repository, or `choose` misses a file in it.
    """
    if _REPOSITORY_FORM.fullmatch(repository) is None:
        raise SettingsError(
            f"A repository must be `organisation/name`, but is {repository!r} instead. "
            "Write for example hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K."
        )
    found = snapshot(repository)
    if found is not None:
        try:
            choose(sorted(path.name for path in found.iterdir()))
        except SettingsError as error:
            _LOG.debug("the cache has only a part of %s: %s", repository, error)
        else:
            return found
    _require_hub(repository)
    return _download(repository, choose)


def snapshot(repository: str) -> Path | None:
    """Return the folder of a repository's cached main revision, whole or in part, or None."""
    entry = cache() / f"models--{repository.replace('/', '--')}"
    try:
        revision = (entry / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    found = entry / "snapshots" / revision
    return found if found.is_dir() else None


def cached() -> Iterator[Cached]:
    """Yield every repository of the local cache, sorted by name."""
    for entry in sorted(cache().glob("models--*")):
        repository = entry.name.removeprefix("models--").replace("--", "/")
        found = snapshot(repository)
        if found is not None:
            yield Cached(repository, found)


def cache() -> Path:
    """Return the folder where huggingface_hub keeps what it fetched (`HF_HOME`, `HF_HUB_CACHE`)."""
    from huggingface_hub import constants  # noqa: PLC0415 - not needed by the bundled model

    return Path(constants.HF_HUB_CACHE)


def fetched(url: str) -> Path:
    """Return a local folder with all objects below a URL, fetched once for each state of them.

    Raises:
        NotFoundError: there is nothing below the URL.
        StorageError: the store refused.
    """
    local = storage.local_path(url)
    if local is not None:
        return local
    root = storage.canonical(url)
    objects = list(storage.list_objects(root))
    if not objects:
        raise NotFoundError(f"There is no object below {root}; a model folder was expected there.")
    state = digest([[found.url, found.etag, found.size_bytes] for found in objects])
    base = kept.folder() / "folders"
    # The readable part becomes part of the model's id.
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", root.rpartition("/")[2]).strip(".") or "model"
    wanted = base / state[:16] / readable
    if not wanted.is_dir():
        _copy(root, objects, wanted)
    return wanted


def _copy(root: str, objects: list[storage.ObjectInfo], wanted: Path) -> None:
    """Copy objects into a folder beside the wanted one, then give it the name in one step."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    partial = wanted.parent.resolve() / f".{wanted.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        for found in objects:
            path = (partial / found.url.removeprefix(root).lstrip("/")).resolve()
            if not path.is_relative_to(partial):
                raise SettingsError(f"The object {found.url} would lie outside of its folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                for offset in range(0, found.size_bytes, _PIECE_BYTES):
                    length = min(_PIECE_BYTES, found.size_bytes - offset)
                    stream.write(storage.read_range(found.url, offset, length))
        try:
            partial.rename(wanted)
        except OSError:
            if not wanted.is_dir():  # else another process was first, with the same objects
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_hub(repository: str) -> None:
    from huggingface_hub import constants  # noqa: PLC0415 - not needed by the bundled model

    if constants.is_offline_mode():
        reason = "The model hub is switched off (HF_HUB_OFFLINE is set)"
    elif not _answers(constants.ENDPOINT):
        endpoint = storage.without_credentials(constants.ENDPOINT)
        reason = f"The model hub {endpoint} is not reachable"
    else:
        return
    raise HubError(
        f"{reason}, and the model {repository} is not in the local cache ({cache()}). "
        "Use the bundled model (`bundled`), or fetch it on a machine that reaches the hub into one "
        f"folder (`hf download {repository} --local-dir FOLDER`) and pass that folder."
    )


def _answers(endpoint: str) -> bool:
    """Tell whether anybody answers in any way within `PROBE_S`, the name's look-up included."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(endpoint, method="HEAD"), timeout=PROBE_S).close()
        except HTTPError as error:
            error.close()
            answers.append(True)
        except URLError as error:
            # Own certificates are huggingface_hub's affair (REQUESTS_CA_BUNDLE): somebody answered.
            answers.append("certificate" in str(error.reason).lower())
        except (OSError, HTTPException, ValueError):
            answers.append(False)
        else:
            answers.append(True)

    # A daemon thread, because a look-up of a name cannot be given a limit.
    thread = Thread(target=ask, name="hub-probe", daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return any(answers)


def _download(repository: str, choose: Choice) -> Path:
    import httpx2  # noqa: PLC0415 - only where something is fetched
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - as above
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError  # noqa: PLC0415

    try:
        wanted = choose(sorted(HfApi().list_repo_files(repository)))
        _LOG.info("fetching %s from the hub: %s", repository, ", ".join(wanted))
        with alive.waiting():
            return Path(snapshot_download(repository, allow_patterns=wanted))
    except GatedRepoError as error:
        raise SettingsError(
            f"The repository {repository} asks for consent. Give it on its page, then set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise SettingsError(
            f"The hub knows no repository {repository}, or it is private: then set HF_TOKEN."
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise HubError(
            f"The hub answered, but {repository} could not be fetched: {str(error).rstrip('.')}. "
            f"Try again, or fetch it elsewhere (`hf download {repository} --local-dir FOLDER`) and "
            "pass that folder."
        ) from error
