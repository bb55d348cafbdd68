"""A captioner folder in, its card and its digest out; needs no torch.

The folder: `captioner.json` (the card), `mapper.safetensors`, `language_model/` (a transformers
causal language model with its tokenizer), and perhaps `review.json` (`clipcap.review`).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from pydantic import Field, JsonValue, ValidationError

from clipcap import storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.settings import Settings, digest

CARD_NAME: Final = "captioner.json"
REVIEW_NAME: Final = "review.json"
"""What is doubted about its captions; changes none of them, so it is not part of the digest."""
MAPPER_NAME: Final = "mapper.safetensors"
LANGUAGE_MODEL_NAME: Final = "language_model"
FORMAT: Final = 1
_READ_BYTES: Final = 64 * 1024 * 1024  # a language model is digested in pieces, not held whole


class Choice(Settings):
    """One extension file and its settings."""

    name: str
    """The file's name: a mapper or a decoder."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Its settings that are not the defaults."""


class EncoderFit(Settings):
    """The encoder whose embeddings a captioner reads."""

    model_id: str
    """The encoder's name, as in the embeddings table."""
    sha256: str | None = None
    """Digest of its weights; null where nobody knows it, and then the name must be equal."""
    preprocess_sha256: str | None = None
    """Digest of its preprocessing; null where nobody knows it."""
    dim: int = Field(ge=1)
    """Width D of its embeddings."""


class Card(Settings):
    """What a captioner is made of and which embeddings it reads."""

    captioner_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name in tables and paths."""
    note: str = ""
    """What a reader must know of it, such as what it was never taught."""
    encoder: EncoderFit
    """The encoder whose embeddings it reads."""
    normalized: bool = True
    """Whether the mapper takes L2-normalised embeddings, or raw ones (times `embedding_norm`)."""
    prefix_length: int = Field(default=10, ge=1)
    """Vectors P that the mapper puts before the language model's input."""
    mapper: Choice = Choice(name="mlp")
    """The mapper and its settings."""
    decode: Choice = Choice(name="beam")
    """The decoder that `caption` uses unless told otherwise, and its settings."""
    training: dict[str, JsonValue] = Field(default_factory=dict)
    """How it was trained: settings, losses, fingerprint of the training data."""
    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    """Version of this folder's layout."""


def read_card(folder: str) -> Card:
    """Read the card of a captioner folder.

    Raises:
        SettingsError: no card in the folder, or one that does not say what it must.
    """
    url = f"{storage.canonical(folder)}/{CARD_NAME}"
    try:
        text = storage.read(url)
    except NotFoundError as error:
        raise SettingsError(
            f"{folder} is not a captioner folder: {CARD_NAME} is missing. A captioner folder holds "
            f"{CARD_NAME}, {MAPPER_NAME} and {LANGUAGE_MODEL_NAME}/."
        ) from error
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, found['loc'])) or 'the file'}: {found['msg']}"
            for found in error.errors()
        )
        raise SettingsError(f"The card {url} cannot be read: {problems}.") from error


def write_card(folder: str, card: Card) -> None:
    """Write the card; the last thing written, since it makes the folder a captioner."""
    text = card.model_dump_json(indent=2) + "\n"
    storage.write(f"{storage.canonical(folder)}/{CARD_NAME}", text.encode())


def remove(folder: str) -> None:
    """Take a captioner out of its folder, first the card, without which the rest does not count.

    Who writes another one there and is killed leaves no captioner rather than one of two halves.
    """
    root = storage.canonical(folder)
    storage.delete(f"{root}/{CARD_NAME}")
    for found in storage.listed(root):
        storage.delete(found.url)


def captioner_digest(folder: str) -> str:
    """Return `captioner_sha256`: the digest of the names and bytes of all files of the folder.

    All but `review.json`: it changes what is thought of captions, not the captions.
    """
    root = storage.canonical(folder)
    return digest(
        {
            found.url.removeprefix(f"{root}/"): _file_digest(found.url, found.size_bytes)
            for found in storage.list_objects(root)
            if found.url != f"{root}/{REVIEW_NAME}"
        }
    )


def require_fit(
    card: Card, *, model_id: str, sha256: str | None, preprocess_sha256: str | None, dim: int
) -> None:
    """Refuse embeddings that the captioner was not made for; a null digest is not compared.

    Raises:
        SettingsError: another encoder, other preprocessing or another width; names both sides.
    """
    wanted = card.encoder
    given = EncoderFit(
        model_id=model_id, sha256=sha256, preprocess_sha256=preprocess_sha256, dim=dim
    )
    differences = [
        f"{name} must be {getattr(wanted, key)}, but is {getattr(given, key)}"
        for key, name in (
            ("sha256", "weights sha256"),
            ("preprocess_sha256", "preprocessing sha256"),
            ("dim", "dimension"),
        )
        if None not in (getattr(wanted, key), getattr(given, key))
        and getattr(wanted, key) != getattr(given, key)
    ]
    if None in (wanted.sha256, given.sha256) and wanted.model_id != given.model_id:
        differences.insert(0, f"encoder must be {wanted.model_id}, but is {given.model_id}")
    if not differences:
        return
    takes = "L2-normalised" if card.normalized else "raw (un-normalised)"
    raise SettingsError(
        f"The captioner {card.captioner_id} does not fit these embeddings. It reads {takes} "
        f"embeddings of encoder {wanted.model_id}, but these were made by {model_id}: "
        f"{'; '.join(differences)}. Embed the images with {wanted.model_id}, or choose a captioner "
        f"that was trained for {model_id}."
    )


def _file_digest(url: str, size_bytes: int) -> str:
    hasher = hashlib.sha256()
    for offset in range(0, size_bytes, _READ_BYTES):
        hasher.update(storage.read_range(url, offset, min(_READ_BYTES, size_bytes - offset)))
    return hasher.hexdigest()


def choose(module: Any, kind: str, choice: Choice) -> Any:  # noqa: ANN401 - an extension's Settings
    """Return the extension's `Settings` filled from a choice.

    Raises:
        SettingsError: a setting that the extension does not have, or a value it cannot take.
    """
    try:
        return module.Settings.model_validate(choice.settings)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, found['loc']))}`: {found['msg']}" for found in error.errors()
        )
        raise SettingsError(f"Settings of the {kind} {choice.name}: {problems}.") from error
