"""`clipcap import-clipcap` and `export-clipcap`: a checkpoint of the original in or out."""

from __future__ import annotations

from pathlib import Path

import click

from clipcap import models
from clipcap.cards import CARD_NAME
from clipcap.errors import SettingsError


@click.command("import-clipcap")
@click.option(
    "--encoder",
    help="The encoder it was trained for: a published name (ViT-B-32-quickgelu/openai; RN50x4 "
    "stands for OpenAI's) or a folder. Known of the published checkpoints.",
)
@click.option(
    "--normalized/--raw",
    default=None,
    help="Whether it was trained on normalised embeddings (--normalize_prefix of train.py). "
    "Known of the published checkpoints.",
)
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="Where GPT-2's vocab.json and merges.txt are, or encoder.json and vocab.bpe; without it "
    "gpt2 is looked for in the local cache of the hub.",
)
@click.option("--name", help="The captioner's name in tables; else that of FILE.")
@click.argument("file")
@click.argument("folder")
def import_clipcap(file: str, folder: str, **given: str | bool | None) -> None:
    """Read a checkpoint of the original ClipCap, FILE, and write it as a captioner to FOLDER.

    Everything that its tensors tell is taken from them; nothing in FILE is run.
    """
    from clipcap import interop

    if (Path(folder).expanduser() / CARD_NAME).exists():
        raise SettingsError(f"{folder} holds a captioner already. Choose another folder.")
    captioner = interop.read_checkpoint(file, interop.Given.model_validate(given))
    captioner.save(str(Path(folder).expanduser()))
    card = captioner.card
    scale = "normalised" if card.normalized else "raw"
    click.echo(
        f"{folder}: {card.captioner_id}, a {card.mapper.name} mapper with P={card.prefix_length}; "
        f"reads {scale} embeddings of {card.encoder.model_id}.\n"
        f"Give it to --captioner, beside the --model whose embeddings it reads."
    )


@click.command("export-clipcap")
@click.option(
    "--buffers",
    is_flag=True,
    help="Write the attention masks too that GPT-2 of transformers before 4.30 asks for: the "
    "original names 4.10.",
)
@click.argument("captioner")
@click.argument("file")
def export_clipcap(captioner: str, file: str, *, buffers: bool) -> None:
    """Write CAPTIONER as a checkpoint of the original ClipCap, FILE.

    CAPTIONER is a folder or its URL. Refused is what the original's code cannot build.
    """
    from clipcap import captioner as captioners
    from clipcap import interop

    loaded = captioners.load(models.captioner_folder(captioner))
    interop.write_checkpoint(loaded, file, buffers=buffers)
    card = loaded.card
    click.echo(
        f"{file}: a state dict of ClipCaptionModel, {card.mapper.name} mapper, prefix_length "
        f"{card.prefix_length}, prefix_size {card.encoder.dim}.\n"
        f"What it cannot say: it reads {'normalised' if card.normalized else 'raw'} embeddings of "
        f"{card.encoder.model_id}."
    )
