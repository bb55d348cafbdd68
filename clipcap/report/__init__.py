"""A night in, its report out: one HTML page that asks nothing of any network and needs no script.

Everything that a file name, a caption or EXIF can say is escaped, and the page's own policy lets it
load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from clipcap import layout, models, tables
from clipcap.errors import NotFoundError
from clipcap.outcomes import Night
from clipcap.report import rejected, summary, templates
from clipcap.report.cards import cards
from clipcap.report.gathering import gather

_PAGE: Final = "page.html"
_QUESTIONS: Final = (
    ("This run", "FROM runs WHERE run_id = {run_id};"),
    (
        "Its captions, least trusted first",
        "FROM captions WHERE run_id = {run_id} ORDER BY clip_score;",
    ),
    ("The review queue", "FROM review_queue;"),
    (
        "What it left out",
        "SELECT reason, source_uri, error_message FROM rejects WHERE run_id = {run_id};",
    ),
    ("Rejects by reason", "FROM rejects_by_reason;"),
    ("Label mix, and whether it moved", "FROM label_mix; FROM label_drift;"),
    (
        "Speed by stage",
        "SELECT stage, sum(rows) AS images, sum(duration_s) AS seconds FROM shard_runs"
        " WHERE run_id = {run_id} GROUP BY stage;",
    ),
)


def render(night: Night, *, images: int) -> str:
    """Return the page of a night; at most `images` images are read, none if nothing was computed.

    Raises:
        TransientStorageError: the store said "later" while a thumbnail was read.
    """
    gathered = gather(night, images=images)
    left_out = sorted({outcome.shard for outcome in night.outcomes if outcome.rejected})
    groups = rejected.groups(night.run, left_out)
    row = _run_row(night)
    return templates.template(_PAGE).render(
        run=night.run,
        night=night,
        policy=_policy(),
        started=datetime.fromtimestamp(night.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=summary.verdict(night, gathered, groups),
        tiles=summary.tiles(night, gathered, groups),
        bundled=_bundled(night),
        gathered=gathered,
        has_drift=night.drift is not None and bool(night.drift.measures or night.drift.canaries),
        queue=cards(night.run.out, gathered.queue),
        sheet=cards(night.run.out, gathered.sheet),
        groups=groups,
        speeds=summary.speeds(night),
        wall=summary.duration(row.get("duration_s") or 0.0),
        settings=_pretty(night.params_json),
        versions=_versions(night, row),
        questions=_questions(night.run.run_id),
        number=summary.number,
        counted=summary.images,
    )


@cache
def _policy() -> str:
    """Return the content security policy: inline pictures and the page's own script, no more."""
    script = re.search(
        r"<script>(.*?)</script>", (templates.FOLDER / _PAGE).read_text("utf-8"), re.DOTALL
    )
    digest = hashlib.sha256((script[1] if script else "").encode()).digest()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src 'sha256-{base64.b64encode(digest).decode()}'"
    )


def _run_row(night: Night) -> Mapping[str, Any]:
    try:
        found: list[dict[str, Any]] = tables.read(layout.runs(night.run)).to_pylist()
    except NotFoundError:
        return {}
    return found[0]


def _bundled(night: Night) -> bool:
    """Tell whether this night's embeddings are the bundled model's."""
    used = {*night.model_ids, *(outcome.of for outcome in night.of("embed"))}
    return models.BUNDLED_ENCODER_ID in used


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _versions(night: Night, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the results depend on besides the settings, by name."""
    used: Sequence[tuple[str, str]] = [
        ("encoder", _names(night, "embed")),
        ("captioner", _names(night, "caption")),
        ("label sets", _names(night, "label")),
        ("host", row.get("host") or ""),
        ("device", row.get("device") or ""),
        ("git commit", row.get("git_commit") or ""),
        *json.loads(row.get("versions_json") or "{}").items(),
    ]
    return [(name, value) for name, value in used if value]


def _names(night: Night, stage: Any) -> str:  # noqa: ANN401 - a stage's name
    return ", ".join(sorted({outcome.of for outcome in night.of(stage) if outcome.of}))


def _questions(run_id: str) -> list[tuple[str, str]]:
    quoted = "'" + run_id.replace("'", "''") + "'"
    return [(title, text.replace("{run_id}", quoted)) for title, text in _QUESTIONS]
