"""An output in; which of its captioners was promoted, when, and by which figures, out and back.

Each promotion is an object of its own, `captioners/_promoted/000001.json` and so on, written only
if there is none: of two at a time one is refused, and the history can be neither lost nor changed.
The last one holds.
"""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from clipcap import cards, layout, models, storage
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError
from clipcap.keys import path_name
from clipcap.settings import Settings

PROMOTED: Final = "promoted"
"""The name that stands for the promoted captioner of an output."""
_TAKEN: Final = (models.BUNDLED, PROMOTED, "none")
"""Names by which commands mean something else than a captioner that was trained."""


def _own(name: str) -> str:
    if name != path_name(name) or name in _TAKEN:
        raise ValueError(
            "a name has letters, digits, `.`, `_` and `-` alone, a letter or digit first and last, "
            f"and is none of {', '.join(_TAKEN)}"
        )
    return name


Name = Annotated[str, AfterValidator(_own)]
"""Of a captioner that is trained: the name of its folder too, of no other captioner's."""


class Compared(Settings):
    """One measure of a captioner beside the one that it follows."""

    metric: str
    before: float
    """The figure of the captioner that was promoted until then."""
    now: float
    low: float
    """Where the interval of `now - before` begins."""
    high: float
    """Where it ends."""


class Promotion(Settings):
    """Which captioner was promoted, and why."""

    number: int = Field(ge=1)
    """The first one has 1."""
    captioner: str
    """`captioners/NAME` below the output, `bundled`, or the URL of a folder."""
    captioner_id: str
    """Its name in tables."""
    captioner_sha256: str
    """Digest of its folder: another state of the folder is another captioner."""
    encoder: EmbedSettings
    """The encoder whose embeddings it was judged on."""
    at: datetime
    """When, in UTC."""
    before: str | None
    """`captioner_id` of the one promoted until then."""
    before_sha256: str | None
    """Digest of its folder."""
    measure: str | None
    """By which it had to be not worse; null: nobody was before it, or nobody judged."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Each measure over all images; none if nobody judged."""
    compared: tuple[Compared, ...] = ()
    """Each measure that both have."""
    images: int = 0
    """Images that were judged."""
    signature: str = ""
    """What the figures must be told with."""
    reason: str = ""
    """Why it was promoted without being judged."""
    format: Literal[1] = 1
    """Version of this file's layout."""


def history(out: str) -> list[Promotion]:
    """Return every promotion in an output, the first one first.

    Args:
        out: the canonical URL of the output.

    Raises:
        SettingsError: one of them cannot be read.
    """
    return [_read(out, number) for number in _numbers(out)]


def current(out: str) -> Promotion | None:
    """Return the promotion that holds; None: nothing was ever promoted."""
    numbers = _numbers(out)
    return _read(out, numbers[-1]) if numbers else None


def add(out: str, promotion: Promotion) -> bool:
    """Write a promotion down; False: another one has its number, and this one does not hold."""
    text = promotion.model_dump_json(indent=1) + "\n"
    return storage.create(layout.promotion(out, promotion.number), text.encode())


def place(out: str, name: str) -> str:
    """Return how a captioner is written down: one below the output moves with it.

    Args:
        out: the canonical URL of the output.
        name: of a captioner trained in this output, `bundled`, a folder, or the URL of a folder.

    Raises:
        SettingsError: a bare name that neither the output nor this folder has.
    """
    if name == models.BUNDLED:
        return name
    own = "/" not in name and layout.captioner(out, name)
    if own and storage.info(f"{own}/{cards.CARD_NAME}") is not None:
        return own.removeprefix(f"{out}/")
    url = storage.canonical(name.removeprefix(models.LOCAL))
    path = storage.local_path(url)
    if own and path is not None and not path.is_dir():
        here = _trained(out)
        near = get_close_matches(name, here, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SettingsError(
            f"No captioner {name!r}.{hint} {out} has {', '.join(here) or 'none'}; `bundled`, a "
            "folder and the URL of one are names too."
        )
    return url.removeprefix(f"{out}/")


def folder(out: str, place: str) -> str:
    """Return the local folder of a captioner that was written down.

    Raises:
        SettingsError: there is no such captioner.
        StorageError: it cannot be read.
    """
    return models.captioner_folder(_url(out, place))


def resolved(out: str, name: str) -> str:
    """Return the captioner that a name stands for in an output: another name than `promoted` stays.

    Raises:
        SettingsError: nothing was promoted, or its folder is gone or holds another captioner now.
        StorageError: it cannot be read.
    """
    if name != PROMOTED:
        return name
    found = current(out)
    if found is None:
        raise SettingsError(
            f"{out} must have a promoted captioner, but none was promoted yet. "
            f"`clipcap models promote {out} NAME` does that."
        )
    require_same(out, found)
    return _url(out, found.captioner)


def require_same(out: str, promotion: Promotion) -> str:
    """Return the local folder of a promoted captioner, sure that it is what was promoted.

    Raises:
        SettingsError: its folder is gone, or holds another captioner now.
        StorageError: it cannot be read.
    """
    local = folder(out, promotion.captioner)
    sha256 = cards.captioner_digest(local)
    if sha256 != promotion.captioner_sha256:
        raise SettingsError(
            f"The folder {promotion.captioner} must hold the captioner that was promoted (digest "
            f"{promotion.captioner_sha256[:12]}), but was changed since: now it has "
            f"{sha256[:12]}. Put the old one back, or promote what is there: `clipcap models "
            f"promote {out} {promotion.captioner.rpartition('/')[2]} --force REASON`."
        )
    return local


def require_free(out: str, name: str) -> None:
    """Refuse to write a captioner over the promoted one.

    Raises:
        SettingsError: the promoted captioner has that name.
    """
    found = current(out)
    if found is not None and f"{out}/{found.captioner}" == layout.captioner(out, name):
        raise SettingsError(
            f"{name} is the promoted captioner of {out} and must stay as it was judged. Train "
            "under another name (--name), then promote that: `clipcap models promote`."
        )


def _url(out: str, place: str) -> str:
    return place if place == models.BUNDLED or "://" in place else f"{out}/{place}"


def _trained(out: str) -> list[str]:
    ending = f"/{cards.CARD_NAME}"
    found = (info.url for info in storage.listed(layout.captioners(out)))
    return [url.removesuffix(ending).rpartition("/")[2] for url in found if url.endswith(ending)]


def _numbers(out: str) -> list[int]:
    found = [info.url for info in storage.listed(layout.promotions(out))]
    names = [url.rpartition("/")[2].removesuffix(".json") for url in found if url.endswith(".json")]
    return sorted(int(name) for name in names if name.isdecimal())


def _read(out: str, number: int) -> Promotion:
    url = layout.promotion(out, number)
    try:
        return Promotion.model_validate_json(storage.read(url))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise SettingsError(
            f"The promotion {url} cannot be read: {where}: {problem['msg']}. Put it back as it "
            "was, or remove it: then the one before holds."
        ) from error
