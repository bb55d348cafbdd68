"""`clipcap labels check`: a label set in, everything that must be otherwise out, with its line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from clipcap.errors import SettingsError
from flows.commands._labels_list import counts
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.labels.bank import Given
    from clipcap.labels.sets import LabelSet


@click.command("check")
@json_option
@click.argument("file")
def check_command(file: str, *, as_json: bool) -> None:
    """Say everything that is wrong in the label set FILE, or what it would label with.

    FILE is TOML, JSON, a fitted label set (.parquet), a URL of one, or a bundled name. Ends with 2
    if there is a problem.
    """
    from clipcap.labels import bank, sets

    if file.endswith(bank.FITTED):
        _tell_fitted(bank.load(file), as_json=as_json)
        return
    found, problems = sets.read(file)
    if found is not None:
        _tell(found, as_json=as_json)
        return
    if as_json:
        told = [{"line": one.line, "problem": one.text} for one in problems]
        click.echo(json.dumps({"ok": False, "problems": told}, indent=1))
    else:
        for one in problems:
            click.echo(f"{file}:{one.line}: {one.text}")
        count = len(problems)
        click.echo(f"{count:,} problem{'' if count == 1 else 's'}; nothing can be labelled with it")
    raise click.exceptions.Exit(SettingsError.exit_code)


def _tell(found: LabelSet, *, as_json: bool) -> None:
    from clipcap.labels.notes import notes

    count, told = counts(found), notes(found)
    if as_json:
        click.echo(json.dumps({"ok": True, "name": found.name, **count, "notes": told}, indent=1))
        return
    ending = "" if count["groups"] == 1 else "s"
    groups = f" in {count['groups']:,} group{ending}" if found.groups else ""
    background = f", {count['background']:,} background names" if found.background else ""
    own = count["labels_with_own_templates"]
    click.echo(f"{found.name} is right: {count['labels']:,} labels{groups}{background}")
    click.echo(
        f"texts     {count['texts']:,} to encode, once for each model: "
        f"{count['synonyms']:,} synonyms, {count['templates']:,} templates"
        + (f", {own:,} labels with their own" if own else "")
    )
    click.echo(f"scores    {_scores(found)}")
    for one in told:
        click.echo(f"note      {one}")


def _scores(found: LabelSet) -> str:
    several = "several labels an image" if found.multi_label else "one label an image"
    by_model = "sigmoid" if found.multi_label else "softmax, or sigmoid if the model has a bias"
    threshold = "the stage's" if found.threshold is None else str(found.threshold)
    own = sum(one.threshold is not None for one in found.labels)
    more = f", {own:,} labels have their own" if own else ""
    how = by_model if found.scores == "model" else found.scores
    return f"{several}, {how}; threshold {threshold}{more}"


def _tell_fitted(given: Given, *, as_json: bool) -> None:
    found = given.fitted
    if found is None:
        return
    told = {"ok": True, "name": given.label_set.name, "labels": found.count}
    told |= {"model_id": found.model_id, "model_sha256": found.model_sha256, "fit": found.fit}
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(f"{given.label_set.name} is right: {found.count:,} labels, fitted")
    click.echo(f"model     {found.model_id}, weights {found.model_sha256[:12]}")
    click.echo(f"scores    {found.activation}")
