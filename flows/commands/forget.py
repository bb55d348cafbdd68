"""`clipcap forget`: an output and names of images in, the output without them out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from clipcap import forgotten, storage
from clipcap.alone import alone
from clipcap.errors import SettingsError
from flows.commands._start import json_option, new_run

if TYPE_CHECKING:
    from clipcap.stages.forget import Preview, Receipt

_SHOWN = 20


@click.command()
@json_option
@click.option("--yes", "do_it", is_flag=True, help="Do it. Without, it is only shown.")
@click.option("--list", "show", is_flag=True, help="Show what is kept out, and change nothing.")
@click.option("--allow", is_flag=True, help="Let what is named in again, as after a mistake.")
@click.option(
    "--receipt", metavar="FILE", help="Write what was done, and what the search found, as JSON."
)
@click.argument("out")
@click.argument("images", nargs=-1)
def forget(  # noqa: PLR0913 - one for each option
    out: str, images: tuple[str, ...], receipt: str | None, *,
    as_json: bool, do_it: bool, show: bool, allow: bool,
) -> None:  # fmt: skip
    """Take IMAGES out of every object of OUT, prove it, and keep them out.

    An image is named by its key, its image_id, or its source URI or path; with / or * at its end
    (quote it) a name stands for all that begin so. Shows what would go; --yes does it, then
    searches every object of OUT, and ends with 1 if anything is left. With --yes and no image, all
    that is kept out is looked for once more.
    """
    from clipcap.stages import forget as stage

    if show:
        _show_kept_out(out, as_json=as_json)
    elif allow:
        _require(images, "--allow")
        with alone(new_run(out), "clipcap forget --allow"):
            names = stage.allow(out, images)
        for name in names:
            click.echo(name)
    elif do_it:
        _require_outside(receipt, out)
        with alone(new_run(out), "clipcap forget"):
            done = stage.forget(out, images)
        text = json.dumps({"ok": done.ok, **asdict(done)}, indent=1)
        if receipt:
            storage.write(storage.canonical(receipt), f"{text}\n".encode())
        click.echo(text if as_json else _told(done))
        if not done.ok:
            raise click.exceptions.Exit(1)
    else:
        _require(images, "OUT")
        found = stage.preview(out, images)
        click.echo(json.dumps(asdict(found), indent=1) if as_json else _offered(found))


def _require(images: tuple[str, ...], behind: str) -> None:
    if not images:
        raise click.UsageError(
            f"Name one image at least behind {behind}: a key, an image_id, a URI, or a prefix that "
            "ends with / or *."
        )


def _require_outside(receipt: str | None, out: str) -> None:
    """Refuse a receipt inside the output, which must not say what was taken out of it."""
    if receipt and f"{storage.canonical(receipt)}/".startswith(f"{storage.canonical(out)}/"):
        raise SettingsError(f"The receipt must lie outside of {out}, but is {receipt}.")


def _show_kept_out(out: str, *, as_json: bool) -> None:
    found = forgotten.records(storage.canonical(out))
    rows = [
        {"what": kind, "name": name, "at": record.at.isoformat(), "contents": list(contents)}
        for record in sorted(found.values(), key=lambda one: one.at)
        for kind, held in (("image", record.images), ("prefix", record.prefixes))
        for name, contents in held.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['what']:<7} {row['name']}  since {str(row['at'])[:10]}")
    click.echo(f"{len(rows)} kept out.")


def _offered(found: Preview) -> str:
    lines = [f"{found.images:,} images would go:" if found.examples else "No image would go."]
    lines += [f"  {one}" for one in found.examples]
    if found.images > len(found.examples):
        lines.append(f"  and {found.images - len(found.examples):,} more")
    if found.twins:
        lines.append(f"and {found.twins:,} with the same bytes under other names.")
    if found.in_advance:
        lines.append(f"{found.in_advance:,} not in this output would be kept out in advance.")
    if found.resumed:
        lines.append(f"{found.resumed:,} of them were being taken out when a run was killed.")
    lines += [f"Whatever begins with {one} would be kept out." for one in found.prefixes]
    lines.append(
        f"To be rewritten: {found.tables} tables and {found.tars} tars of {found.shards} shards, "
        f"{len(found.reports)} reports."
    )
    return "\n".join([*lines, *found.notes, "Nothing was changed: add --yes to do it."])


def _told(done: Receipt) -> str:
    lines = [
        f"{len(done.image_ids):,} images are out of {done.out}, {done.twins:,} more with the same "
        f"bytes, and {done.rejects:,} rejects; they will not come back.",
        f"Searched {done.searched_objects:,} objects, {done.searched_bytes / 1e6:,.0f} MB.",
    ]
    if done.reports:
        lines.append(f"Reports that showed them are gone: {', '.join(done.reports[:_SHOWN])}.")
    if done.left:
        lines += ["Something is left:", *(f"  {one}" for one in done.left[:_SHOWN])]
        lines.append("Remove or mend that, then run the same command again.")
    else:
        lines.append("Nothing is left of them but the record that keeps them out.")
    return "\n".join([*lines, *done.notes])
