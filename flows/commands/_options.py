"""Options typed, and a settings file, in; the settings they stand for out.

An option's help is the docstring of the field it sets: written once, shown here and in Prefect's
form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeVar, get_args

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from clipcap import storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import files
from clipcap.review import REASONS, ReviewSettings
from clipcap.sinks.sidecars import Settings as SidecarSettings
from clipcap.sources.folder import Settings as FolderSettings
from clipcap.stability import Accepted, DriftSettings
from clipcap.stages.caption import CaptionSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.publish import PublishSettings
from clipcap.stages.shard import ShardSettings
from flows.settings import NightlySettings

S = TypeVar("S", bound=BaseModel)
Command = Callable[..., None]
NO_CAPTIONER: Final = "none"


@dataclass(frozen=True, slots=True)
class Choice:
    """An option, the places in the settings that it sets, and the field that explains it."""

    flag: str
    paths: tuple[str, ...]
    explained_by: tuple[type[BaseModel], str]
    kind: Any = str
    more: str = ""
    on: bool = True
    """Whether the field's default holds where the option is not given."""

    @property
    def name(self) -> str:
        """The name under which click passes the value."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def field(self) -> FieldInfo:
        """The field whose docstring is the help."""
        model, name = self.explained_by
        return model.model_fields[name]

    def option(self) -> click.Option:
        """Return the option for click."""
        default = self.field.get_default()
        several = isinstance(default, tuple)
        text = f"{(self.field.description or '').replace('`', '')}{self.more}"
        if default not in (None, "") and self.on:
            text += f" [default: {', '.join(default) if several else default}]"
        return click.Option([self.flag], type=self.kind, multiple=several, help=text)


_MODES: Final = click.Choice(["skip", "overwrite", "append"])
KIND: Final = Choice(
    "--kind",
    ("shard.kind",),
    (ShardSettings, "kind"),
    click.Choice(get_args(ShardSettings.model_fields["kind"].annotation)),
)
GLOB: Final = Choice("--glob", ("shard.options.glob",), (FolderSettings, "glob"))
ONLY: Final = Choice("--only", ("shard.only",), (ShardSettings, "only"))
LIMIT: Final = Choice("--limit", ("shard.limit",), (ShardSettings, "limit"), int)
RATE: Final = Choice(
    "--max-reject-rate", ("max_reject_rate",), (NightlySettings, "max_reject_rate"), float
)
MODEL: Final = Choice("--model", ("embed.model",), (EmbedSettings, "model"))
CAPTIONER: Final = Choice(
    "--captioner",
    ("caption.captioner",),
    (CaptionSettings, "captioner"),
    more=f" {NO_CAPTIONER}: write no captions.",
)
SUPPRESS: Final = Choice(
    "--suppress",
    ("caption.review.suppress",),
    (ReviewSettings, "suppress"),
    click.Choice(REASONS),
    more=" Give the option once for each.",
    on=False,
)
LABEL_SET: Final = Choice(
    "--label-set",
    ("label.label_sets",),
    (LabelSettings, "label_sets"),
    more=" Give the option once for each.",
)
DEVICE: Final = Choice("--device", ("speed.device", "caption_speed.device"), (Speed, "device"))
BATCH: Final = Choice(
    "--batch-size", ("speed.batch_size", "caption_speed.batch_size"), (Speed, "batch_size"), int
)
ACCEPT_DRIFT: Final = Choice(
    "--accept-drift",
    ("drift.accept",),
    (DriftSettings, "accept"),
    click.Choice(get_args(Accepted)),
)
SIDECARS: Final = Choice(
    "--sidecars",
    ("publish.sinks.sidecars.mode",),
    (SidecarSettings, "mode"),
    _MODES,
    more=" Writes a text file with the caption beside each image.",
    on=False,
)
TABLE_FORMAT: Final = Choice(
    "--table-format",
    ("publish.table_format",),
    (PublishSettings, "table_format"),
    click.Choice(get_args(PublishSettings.model_fields["table_format"].annotation)),
)


def choices(model: type[S], *offered: Choice) -> Callable[[Callable[..., None]], Command]:
    """Give a command options and `--settings`; it is called with `settings`, of type `model`."""

    def decorate(function: Callable[..., None]) -> Command:
        def command(**given: Any) -> None:  # noqa: ANN401 - whatever its own options give
            typed = {choice: given.pop(choice.name) for choice in offered}
            chosen = _nested({choice: value for choice, value in typed.items() if _is_given(value)})
            function(settings=read(model, given.pop("settings_file"), chosen), **given)

        command.__doc__ = function.__doc__
        own: list[click.Parameter] = getattr(function, "__click_params__", [])
        file_option = click.Option(
            ["--settings", "settings_file"], metavar="FILE", help=_file_help(model)
        )
        params = [*own, file_option, *(choice.option() for choice in reversed(offered))]
        command.__click_params__ = params  # type: ignore[attr-defined]
        return command

    return decorate


def _file_help(model: type[BaseModel]) -> str:
    names = ", ".join(model.model_fields)
    return f"JSON or TOML file of everything that may be chosen ({names}); options go before it."


def _is_given(value: object) -> bool:
    return value is not None and value != ()


def _nested(typed: Mapping[Choice, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for choice, value in typed.items():
        for path in choice.paths:
            *folders, last = path.split(".")
            inner = nested
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[last] = value
    if nested.get("caption", {}).get("captioner") == NO_CAPTIONER:
        nested["caption"] = None
    return nested


def read(model: type[S], file: str | None, chosen: Mapping[str, Any]) -> S:
    """Return the settings of a file, with what was chosen in their place.

    Raises:
        SettingsError: says every setting that is unknown or cannot be, with its place.
    """
    held = _file(file) if file else {}
    try:
        return model.model_validate(_merged(held, chosen))
    except ValidationError as error:
        lines = "\n  ".join(_problem(found, model) for found in error.errors())
        where = f"The settings in {file}" if file else "The settings"
        raise SettingsError(f"{where} cannot be used:\n  {lines}") from error


def _file(file: str) -> dict[str, Any]:
    try:
        text = storage.read(file).decode("utf-8")
        found = files.of_toml(text) if file.endswith(".toml") else json.loads(text)
    except NotFoundError as error:
        raise SettingsError(f"The settings file {file} is not there.") from error
    except RecursionError as error:
        raise SettingsError(f"The settings file {file} is nested too deeply.") from error
    except ValueError as error:
        raise SettingsError(
            f"The settings file {file} must be TOML (.toml) or JSON, but cannot be read: {error}."
        ) from error
    if not isinstance(found, dict):
        raise SettingsError(f"The settings file {file} must hold an object, not a {type(found)}.")
    return found


def _merged(held: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(held)
    for name, value in chosen.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = _merged(old, value) if both and isinstance(old, dict) else value
    return merged


def _problem(found: Mapping[str, Any], model: type[BaseModel]) -> str:
    place: Sequence[Any] = found["loc"]
    name = ".".join(map(str, place))
    if found["type"] != "extra_forbidden":
        given = found["input"]
        shown = f" (it is {given!r})" if isinstance(given, str | int | float) else ""
        return f"{name}: {found['msg']}{shown}"
    known = _fields(model, place[:-1])
    near = get_close_matches(str(place[-1]), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}." if known else ""
    return f"{name}: there is no such setting.{hint}"


def _fields(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Return the names of the fields at a place, none where it is no model of ours."""
    at: Any = model
    for part in place:
        field = getattr(at, "model_fields", {}).get(part)
        found = field.get_default(call_default_factory=True) if field else None
        at = type(found)
    return list(getattr(at, "model_fields", {}))
