"""The card of a captioner that was trained in, one HTML page of how it learned out.

As the report of a night: everything is escaped, and the page loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from clipcap import layout, storage
from clipcap.cards import Card
from clipcap.layout import Run
from clipcap.report import curves, templates
from clipcap.report.curves import Chart
from clipcap.report.summary import Tile, duration, number

_PAGE: Final = "trained.html"


def render(run: Run, card: Card, *, seconds: float) -> str:
    """Return the page of a training.

    Args:
        run: which run trained.
        card: what the captioner says of its training.
        seconds: how long it took.
    """
    training: Mapping[str, Any] = card.training
    return templates.template(_PAGE).render(
        policy=templates.POLICY,
        run=run,
        card=card,
        out=_typed(run.out),
        folder=_typed(layout.captioner(run.out, card.captioner_id)),
        took=duration(seconds),
        sentence=_sentence(card.captioner_id, training),
        tiles=_tiles(training),
        charts=_charts(training),
        measured=training["validation"],
        best=training["best_step"],
        settings=json.dumps({"mapper": card.mapper.model_dump(), **training["settings"]}, indent=2),
        size=curves,
        number=number,
    )


def _typed(url: str) -> str:
    """Return a URL as a person would type it."""
    return str(storage.local_path(url) or url)


def _sentence(name: str, training: Mapping[str, Any]) -> str:
    parts = []
    if training.get("texts"):
        parts.append(f"{number(training['texts'])} texts")
    if training["captions"]:
        parts.append(f"{number(training['captions'])} captions of images")
    return f"{name} learned from {' and '.join(parts)}."


def _tiles(training: Mapping[str, Any]) -> list[Tile]:
    kept = [one for one in training["validation"] if one["step"] == training["best_step"]]
    best = kept[0] if kept and training["settings"]["keep"] == "best" else None
    best = best or (training["validation"] or [None])[-1]
    steps = f"of {number(training['steps'])} steps"
    held = f"{number(training['captions_held_out'])} captions held out"
    tiles = []
    if best is not None:
        tiles.append(Tile("Held-out loss", f"{best['loss']:.3f}", held))
        if best["score"] is not None:
            tiles.append(Tile("CIDEr-D", f"{best['score']:.3f}", "greedy captions, 0 to 10"))
        tiles.append(Tile("Kept", number(best["step"]), steps))
    else:
        tiles.append(Tile("Loss at the end", f"{training['losses'][-1]:.3f}", steps))
    cut, longest = training["captions_cut"], training["settings"]["max_tokens"]
    tiles.append(Tile("Cut", number(cut), f"captions of over {longest} tokens"))
    tiles.append(Tile("Blank", number(training["captions_blank"]), "captions left out"))
    return tiles


def _charts(training: Mapping[str, Any]) -> list[Chart]:
    every: int = training["loss_every"]
    learned = [
        (min((n + 1) * every, training["steps"]), loss) for n, loss in enumerate(training["losses"])
    ]
    marks = {
        "captions of images": training.get("text_steps"),
        "kept": training["best_step"] if training["settings"]["keep"] == "best" else None,
    }
    held = _measured(training, "loss")
    drawn = {"learned from": learned} | ({"held out": held} if held else {})
    charts = [curves.chart("Loss", drawn, marks)]
    if scores := _measured(training, "score"):
        charts.append(curves.chart("CIDEr-D", {"held out": scores}, marks))
    return charts


def _measured(training: Mapping[str, Any], name: str) -> Sequence[tuple[float, float]]:
    return [(one["step"], one[name]) for one in training["validation"] if one[name] is not None]
