"""`clipcap labels list`: the label sets and template lists that come with the project."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.labels.sets import Label, LabelSet
    from clipcap.labels.templates import TemplateList


@click.command("list")
@json_option
@click.argument("name", required=False)
def list_command(name: str | None, *, as_json: bool) -> None:
    """List the bundled label sets and template lists, or what is in NAME.

    NAME is a bundled label set or template list, or a file of your own.
    """
    from clipcap.labels import bank, sets, templates

    if name is None:
        found = [sets.load(one) for one in sets.bundled()]
        lists = [templates.load(one) for one in templates.bundled()]
        _show_all(found, lists, as_json=as_json)
    elif name in templates.bundled():
        _show_templates(templates.load(name), as_json=as_json)
    else:
        _show(bank.load(name).label_set, as_json=as_json)


def counts(label_set: LabelSet) -> dict[str, int]:
    """Return how much of everything a label set has."""
    from clipcap.labels.check import text_count

    own = sum(bool(one.templates) for one in label_set.labels)
    return {
        "labels": len(label_set.labels) - len(label_set.groups),
        "groups": len(label_set.groups),
        "background": len(label_set.background),
        "synonyms": sum(len(one.synonyms) for one in label_set.labels),
        "templates": len(label_set.templates),
        "labels_with_own_templates": own,
        "texts": text_count(label_set),
    }


def _show_all(found: list[LabelSet], lists: list[TemplateList], *, as_json: bool) -> None:
    from flows.console import tables_console

    if as_json:
        told = [
            {"name": one.name, **counts(one), "source": one.source, "licence": one.licence}
            for one in found
        ]
        more = [{**one.model_dump(), "templates": len(one.templates)} for one in lists]
        click.echo(json.dumps({"label_sets": told, "template_lists": more}, indent=1))
        return
    table = Table("label set", box=None, pad_edge=False)
    for column in ("labels", "groups", "texts"):
        table.add_column(column, justify="right")
    table.add_column("source; licence")
    for one in found:
        count = counts(one)
        numbers = [f"{count[column]:,}" for column in ("labels", "groups", "texts")]
        table.add_row(one.name, *numbers, escape(f"{one.source}; {one.licence}"))
    tables_console().print(table)
    table = Table("template list", box=None, pad_edge=False)
    table.add_column("templates", justify="right")
    table.add_column("source; licence")
    for each in lists:
        signed = escape(f"{each.source}; {each.licence}")
        table.add_row(each.name, str(len(each.templates)), signed)
    tables_console().print("", table)
    click.echo(
        "\nGive a label set to --label-set, a template list to `templates` in a file of your own. "
        "`clipcap labels list NAME` shows what is in one."
    )


def _show_templates(found: TemplateList, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.model_dump(), indent=1))
        return
    click.echo("\n".join(found.templates))
    click.echo(f"\n{found.source}; {found.licence}")


def _show(found: LabelSet, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.model_dump(mode="json"), indent=1))
        return
    children: dict[str, list[Label]] = {}
    for one in found.labels:
        children.setdefault(one.parent, []).append(one)
    lines = [(one, 0) for one in reversed(children.get("", []))]
    while lines:
        one, depth = lines.pop()
        said = [one.text] if one.text and one.text != one.name else []
        words = ", ".join([*said, *one.synonyms])
        click.echo(f"{'  ' * depth}{one.name}{f' ({words})' if words else ''}")
        lines += [(child, depth + 1) for child in reversed(children.get(one.name, []))]
    if found.background:
        click.echo(f"\nnone of these: {', '.join(found.background)}")
    click.echo("\ntemplates:\n  " + "\n  ".join(found.templates))
    click.echo(f"\n{found.source or 'no source'}; {found.licence or 'no licence'}")
