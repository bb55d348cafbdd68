"""A source and an output in; an error out where a run would write into what is not its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Final

from clipcap import contracts, layout, manifest, snapshots, storage
from clipcap.comparison import FEW
from clipcap.errors import DamagedError, NotFoundError, SettingsError
from clipcap.layout import Shard
from clipcap.verify.places import is_of_output

_LOOKED_AT: Final = 2  # batches of a listing: some thousand objects
_SHOWN: Final = 3
_LEFT: Final = re.compile(
    r"(_(plans|listings|index|labelsets|drift|canaries|training|manifests|set_aside|lease|forgotten)"
    r"|captioners)/.*|_probe(-[0-9a-f]+)?|contract\.json"
)
"""What a run that was killed early, or a training, may have left alone."""


def require_apart(source: str, out: str) -> None:
    """Do nothing where a source and an output are two places.

    An output inside a source is one: listing the source leaves it out.

    Raises:
        SettingsError: they are the same, or the source is a part of the output.
    """
    root = storage.canonical(out)
    plain = re.split(r"[*?\[]", source, maxsplit=1)[0]
    place = storage.canonical(plain or ".")
    if place == root:
        raise SettingsError(
            f"Source and output must be two places, but both are {out}. Nothing was written. Name "
            f"a folder of its own for the output, such as {out.rstrip('/')}/clipcap: a run leaves "
            "it out where it lists the source."
        )
    inside = place.startswith(f"{root}/")
    if inside and (plain != source or storage.info(place) is None):
        raise SettingsError(
            f"The source must not lie inside of the output, but {source} is a part of {out}: a run "
            "would take in its own files. Nothing was written. Name another folder or prefix for "
            "the output."
        )


def require_ours(out: str) -> None:
    """Do nothing where an output is empty, not there yet, or what a run has written.

    Raises:
        SettingsError: it is a file, or holds what somebody else has put there.
        StorageError: it may not be listed.
    """
    root = storage.canonical(out)
    if storage.info(root) is not None:
        raise SettingsError(
            f"The output must be a folder or prefix, but {out} is a file. Nothing was written."
        )
    if "contract" in contracts.said(root):
        return
    strange = []
    for path in _paths(root):
        if is_of_output(path):
            return
        if not _LEFT.fullmatch(path):
            strange.append(path)
    if strange:
        shown = ", ".join(strange[:_SHOWN]) + (", ..." if len(strange) > _SHOWN else "")
        raise SettingsError(
            f"The output must be empty or one of clipcap's own, but {out} holds other things: "
            f"{shown}. Nothing was written. Name a folder or prefix of its own, such as "
            f"{out.rstrip('/')}/clipcap."
        )


def require_kept(out: str) -> None:
    """Do nothing where the shards that the newest whole run told of are, by and large, still there.

    A night over what was left of manifests would take all images for new, and empty their other
    tables; one over what was left of tars would do all its work, and not publish it. A shard that a
    run has retired, or merged, lost both; what is being forgotten may have one still.

    Raises:
        SettingsError: most manifests are gone, and their tars are not; or the other way round.
        StorageError: it may not be listed.
    """
    root = storage.canonical(out)
    try:
        told = snapshots.newest(root)
    except (SettingsError, DamagedError):  # `clipcap verify --repair` and the run say more of that
        return
    if told is None:
        return
    shards, packed = (
        {layout.shard_of(path) for path in told.objects if path.startswith(folder)}
        for folder in ("manifest/", "shards/")
    )
    # In this order: a run that retires a shard removes its manifest before its tar.
    tars = {layout.shard_of(info.url) for info in storage.listed(layout.tars(root))}
    kept = {layout.shard_of(info.url) for info in manifest.objects(root, "manifest")}
    if _is_most(shards - kept, shards) and not storage.listed(layout.unfinished(root)):
        _require_manifests((shards - kept) & tars, shards, told.run_id, out)
    lost = sorted((packed - tars) & kept)
    if _is_most(set(lost), packed) and any(manifest.lacks_tar(root, one) for one in lost[:_SHOWN]):
        raise SettingsError(
            f"The output {out} must hold the tars of {len(packed):,} shards that the run "
            f"{told.run_id} told of, but {len(lost):,} are gone, such as "
            f"{layout.tar(root, lost[0])}, and their manifests are not: somebody deleted them, "
            "and no night can be published. Nothing was changed. Bring them back (from versions of "
            f"the bucket, or a backup), or `clipcap verify {out} --repair`: then the next night "
            "reads those images from the source again."
        )


def _require_manifests(
    lost: AbstractSet[Shard], shards: AbstractSet[Shard], run_id: str, out: str
) -> None:
    if _is_most(lost, shards):
        raise SettingsError(
            f"The output {out} must hold the manifests of {len(shards):,} shards that the run "
            f"{run_id} told of, but {len(lost):,} are gone, and their tars are not: somebody "
            "deleted them, and a night would read and embed everything anew. Nothing was changed. "
            "Bring them back (from versions of the bucket, or a backup), or begin anew in another "
            f"output. To go on with what is left, remove {layout.latest(storage.canonical(out))}: "
            "sinks then get all captions again."
        )


def _is_most(some: AbstractSet[Shard], whole: AbstractSet[Shard]) -> bool:
    return bool(some) and (some == whole or len(some) > max(FEW, len(whole) / 2))


def _paths(root: str) -> Iterator[str]:
    """Yield the first objects of an output, as paths below it."""
    batches = storage.list_batches(root)
    try:
        for batch in islice(batches, _LOOKED_AT):
            for url in batch["url"].to_pylist():
                yield url.removeprefix(f"{root}/")
    except NotFoundError:
        return
