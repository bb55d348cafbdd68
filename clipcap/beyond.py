"""An output and images that leave it in; what of them lies elsewhere, in sentences, out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from clipcap import cards, layout, manifest, storage, tables
from clipcap.targets import Found

_SHOWN: Final = 3


def notes(out: str, found: Found) -> Iterator[str]:
    """Yield what no takedown of the output reaches, and a person must see to."""
    yield "The source is never touched: take the images out there too."
    if found.in_place:
        count = sum(found.in_place.values())
        yield (
            f"{count} of the images lie in tars of the source, which are never written: "
            f"{_some(sorted(found.in_place))}. Write those tars anew without them."
        )
    for name, where in sorted(_sinks(out)):
        place = f" ({where})" if where else " beside the images of the source"
        yield f"Captions went to the sink {name}{place}: take them out there."
    if trained := _captioners(out):
        yield (
            f"The captioners {_some(trained)} were trained in this output and may have learned "
            "from the images; their weights are not changed. Train them anew, under new names."
        )
    if storage.local_path(out) is None:
        yield (
            "A bucket that keeps old versions keeps the objects as they were before: let it expire "
            "noncurrent versions, and unfinished uploads."
        )
    if any(storage.listed(layout.plans(out))):
        yield (
            "A run over this output is under way, or was killed: once it has ended, run "
            f"`clipcap forget {storage.local_path(out) or out} --yes` once more."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sinks(out: str) -> set[tuple[str, str]]:
    """Return which sinks runs have written to, and where."""
    found: set[tuple[str, str]] = set()
    for info in manifest.objects(out, "runs"):
        for text in tables.read(info.url, ["params_json"])["params_json"].to_pylist():
            try:
                sinks = json.loads(text)["settings"]["publish"]["sinks"]
                found |= {(name, str((own or {}).get("url", ""))) for name, own in sinks.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
    return found


def _captioners(out: str) -> list[str]:
    ending = f"/{cards.CARD_NAME}"
    urls = (info.url for info in storage.listed(layout.captioners(out)))
    return [url.removesuffix(ending).rpartition("/")[2] for url in urls if url.endswith(ending)]
