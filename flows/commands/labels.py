"""`clipcap labels`: what images are labelled with, listed, checked, proposed, fitted, learnt.

Each subcommand is a file `_labels_<name>.py`.
"""

from __future__ import annotations

import click

from flows.commands._labels_check import check_command
from flows.commands._labels_evaluate import evaluate_command
from flows.commands._labels_fit import fit_command
from flows.commands._labels_learn import learn_command
from flows.commands._labels_list import list_command
from flows.commands._labels_propose import propose_command


@click.group()
def labels() -> None:
    """List, check, propose, fit, learn and judge label sets."""


for _command in (
    list_command,
    check_command,
    propose_command,
    fit_command,
    learn_command,
    evaluate_command,
):
    labels.add_command(_command)
