"""`clipcap compact` and `clipcap vacuum`: an output in; fewer and fuller objects out, or a plan."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import click

from clipcap import storage
from clipcap.alone import alone
from clipcap.planning import PackSettings
from clipcap.stages.compact import CompactSettings
from clipcap.stages.vacuum import VacuumSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option, new_run
from flows.commands.plan import in_bytes

if TYPE_CHECKING:
    from clipcap.stages.compact import Compacted
    from clipcap.stages.vacuum import Vacuumed

_SHOWN: Final = 10
_DRY: Final = "Nothing was changed; --yes does it."
_yes = click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")


@click.command()
@options.choices(
    CompactSettings,
    Choice("--within", ("within",), (CompactSettings, "within")),
    Choice("--settled-days", ("settled_days",), (CompactSettings, "settled_days"), int),
    Choice("--small", ("small",), (CompactSettings, "small"), float),
    Choice("--max-images", ("pack.max_images",), (PackSettings, "max_images"), int),
    Choice("--max-bytes", ("pack.max_bytes",), (PackSettings, "max_bytes"), int),
)
@json_option
@_yes
@click.argument("out")
def compact(out: str, settings: CompactSettings, *, as_json: bool, yes: bool) -> None:
    """Merge the small shards of OUT into few; readers see the same.

    Images and rows are copied, no model runs, and the next night has nothing to do. Only where an
    image lies changes (`shard`, `member_offset`), and with --within its date. A dry run without
    --yes; docs/upkeep.md says more.
    """
    from clipcap.stages.compact import compact as stage

    run = new_run(out)
    with alone(run, "clipcap compact") if yes else nullcontext():
        done = stage(run, settings=settings, write=yes)
    if as_json:
        click.echo(json.dumps(_compacted(done, written=yes), indent=1))
        return
    would = "" if yes else "would be "
    size = in_bytes(sum(one.tar_bytes for one in done.groups))
    count = len(done.merged) if yes else len(done.groups)
    click.echo(
        f"compact   {done.sources:,} of {done.shards:,} shards {would}merged into {count:,}, "
        f"{size} of tars, {done.seconds:.1f} s"
    )
    if done.finished:
        click.echo(f"          {done.finished:,} that an earlier call was killed at were finished")
    if done.untouched:
        more = " of their date (see --within)" if settings.within == "day" else ""
        click.echo(f"          {done.untouched:,} small ones have none to be merged with{more}")
    if done.unsettled:
        click.echo(f"          {done.unsettled:,} are of the newest dates (see --settled-days)")
    if done.waiting:
        click.echo(f"          {done.waiting:,} wait for a night: changed since the last one")
    if not yes and done.groups:
        click.echo(_DRY)


def _compacted(done: Compacted, *, written: bool) -> dict[str, Any]:
    counts = (
        "shards", "small", "untouched", "unsettled", "waiting", "finished", "sources", "seconds",
    )  # fmt: skip
    groups = [
        {"dt": one.dt, "shards": [str(part.shard) for part in one.parts], "bytes": one.tar_bytes}
        for one in done.groups
    ]
    return {
        "written": written,
        **{name: getattr(done, name) for name in counts},
        "groups": groups,
        "merged": [str(one.shard) for one in done.merged],
    }


@click.command()
@options.choices(
    VacuumSettings,
    Choice("--keep", ("keep",), (VacuumSettings, "keep"), int),
    Choice("--older-than", ("older_than",), (VacuumSettings, "older_than"), int),
    Choice("--dead", ("dead",), (VacuumSettings, "dead"), float),
)
@json_option
@_yes
@click.argument("out")
def vacuum(out: str, settings: VacuumSettings, *, as_json: bool, yes: bool) -> None:
    """Remove from OUT what nothing names, and the dead bytes of its tars.

    What no shard that counts and no kept list names, old lists and reports, what killed runs left,
    unfinished uploads. What it does not know it names and leaves. A dry run without --yes;
    docs/upkeep.md has all of it.
    """
    from clipcap.stages.vacuum import vacuum as stage

    run = new_run(out)
    with alone(run, "clipcap vacuum") if yes else nullcontext():
        done = stage(run, settings=settings, write=yes)
    if as_json:
        click.echo(json.dumps(_vacuumed(done, written=yes), indent=1))
        return
    would = "removed" if yes else "would go"
    for kind, count, size in done.kinds():
        click.echo(f"{kind:<30}{count:>8,} {would}, {in_bytes(size)}")
    if done.hollow:
        rewritten = "written anew" if yes else "would be written anew"
        text = f"{len(done.hollow):>8,} {rewritten}, {in_bytes(done.dead_bytes)}"
        click.echo(f"{'tars with dead bytes':<30}{text}")
    for path in done.found.unknown[:_SHOWN]:
        click.echo(f"not ours, left alone: {path}")
    if len(done.found.unknown) > _SHOWN:
        click.echo(f"and {len(done.found.unknown) - _SHOWN:,} more that are not ours")
    total = sum(size for *_, size in done.kinds()) + done.dead_bytes
    if not total and not done.unfinished:
        click.echo("vacuum    nothing to do")
    elif not yes:
        click.echo(_DRY)


def _vacuumed(done: Vacuumed, *, written: bool) -> dict[str, Any]:
    return {
        "written": written,
        "kinds": [
            dict(zip(("kind", "objects", "bytes"), one, strict=True)) for one in done.kinds()
        ],
        "objects": [one.path for one in done.found.litter],
        "unfinished": [storage.without_credentials(one.url) for one in done.unfinished],
        "hollow": [{"shard": str(one.part.shard), "dead": one.dead_bytes} for one in done.hollow],
        "removed": len(done.removed),
        "merged": [str(one.shard) for one in done.merged],
        "unknown": list(done.found.unknown),
        "seconds": done.seconds,
    }
