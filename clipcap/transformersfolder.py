"""A folder as transformers' `save_pretrained` writes it in, the parts of an encoder out.

Checked without transformers: a night without work needs names and digests alone. Pickled weights,
and models of other kinds, are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from clipcap import imageprocessor, modelfolder
from clipcap.errors import SettingsError
from clipcap.settings import digest

CONFIGURATION: Final = "config.json"
MODEL_TYPES: Final = ("clip", "siglip", "siglip2")
_PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"
_PART: Final = re.compile(r"model-\d+-of-\d+\.safetensors")
_TOKENIZER_PARTS: Final = (*modelfolder.TOKENIZER_PARTS, "added_tokens.json")
_SIDE_PX: Final = 224  # transformers' default, as those of the widths
_PATCH_PX: Final = 16
_WIDTHS: Final = {"clip": 512, "siglip": 768, "siglip2": 768}
_RESAVED: Final = (
    "Save it once, where you trust it: `model = AutoModel.from_pretrained(NAME)`, "
    "`model.save_pretrained(FOLDER)`, `AutoProcessor.from_pretrained(NAME).save_pretrained(FOLDER)`"
    ", and pass FOLDER."
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an encoder is made of; all of it lies in one folder of this machine."""

    loader: ClassVar = "transformers"
    folder: Path
    config: dict[str, Any]
    names: tuple[str, ...]
    """The files that count, the weights (or the index of their parts) among them."""
    whole_preprocess: dict[str, Any]
    dim: int
    """D, the width of an embedding."""

    @property
    def tokenizer(self) -> Path:
        """Return the folder of the tokenizer."""
        return self.folder

    @property
    def weights(self) -> Path:
        """Return the file of the weights, or the one that names its parts."""
        return self.folder / (_WEIGHTS if _WEIGHTS in self.names else _INDEX)

    @property
    def weights_sha256(self) -> str:
        """Return the digest of the weights; of several files the digest of theirs."""
        if self.weights.name == _WEIGHTS:
            return modelfolder.sha256(self.weights)
        parts = [name for name in self.names if name == _INDEX or _PART.fullmatch(name)]
        return digest([modelfolder.sha256(self.folder / name) for name in parts])

    @property
    def config_sha256(self) -> str:
        """Return the digest of the configuration and of the tokenizer's files."""
        parts = [name for name in self.names if name in _TOKENIZER_PARTS]
        return digest({name: modelfolder.sha256(self.folder / name) for name in parts})


def read(folder: Path) -> Parts:
    """Return the parts of a folder.

    Raises:
        SettingsError: something is missing, malformed, not safe, or of another kind of model.
    """
    config = read_configuration(folder)
    _require_own_weights(folder, config)
    names = choose(modelfolder.file_names(folder), str(folder))
    if _INDEX in names:
        _require_parts(folder / _INDEX, names)
    path, found = _processor(folder)
    model_type = config["model_type"]
    vision = _section(config, "vision_config")
    is_flexible = model_type == "siglip2"
    name, default = ("patch_size", _PATCH_PX) if is_flexible else ("image_size", _SIDE_PX)
    side = _whole(vision.get(name, default), folder, name)
    preprocess = imageprocessor.translated(found, path, model_type=model_type, side_px=side)
    return Parts(folder, config, tuple(names), preprocess, _dim(config, folder))


def read_configuration(folder: Path) -> dict[str, Any]:
    """Return a folder's `config.json`.

    Raises:
        SettingsError: it is malformed, or of a model that does not embed images and texts.
    """
    path = folder / CONFIGURATION
    config = modelfolder.json_object(path)
    if config.get("model_type") not in MODEL_TYPES:
        raise SettingsError(
            f"{path} must be of a model that embeds images and texts (model_type "
            f"{', '.join(MODEL_TYPES)}), but has model_type {config.get('model_type')!r}. A "
            f"model in open_clip's form has {modelfolder.CONFIGURATION} too."
        )
    return config


def is_known(folder: Path) -> bool:
    """Tell whether a folder's `config.json` is of a model that embeds images and texts."""
    with suppress(SettingsError):
        read_configuration(folder)
        return True
    return False


def choose(names: Sequence[str], place: str) -> list[str]:
    """Return the needed files out of the names of a folder or a repository.

    Raises:
        SettingsError: the processor, safe weights or the tokenizer are missing.
    """
    processors = [name for name in _PROCESSORS if name in names]
    if not processors:
        raise SettingsError(
            f"{place} must hold preprocessor_config.json (how images are resized and normalised), "
            "but has none; a guess would make every embedding silently wrong. Copy it from where "
            "the weights come from."
        )
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise SettingsError(
            f"{place} must hold the model's tokenizer as tokenizer.json, or as vocab.json and "
            "merges.txt, but has neither. Copy it from where the weights come from, or let "
            "transformers' `AutoTokenizer` save it."
        )
    tokenizer = [name for name in _TOKENIZER_PARTS if name in names]
    return [*tokenizer, *processors, *_choose_weights(names, place)]


def _choose_weights(names: Sequence[str], place: str) -> list[str]:
    if _WEIGHTS in names:
        return [_WEIGHTS]
    parts = sorted(name for name in names if _PART.fullmatch(name))
    if _INDEX in names and parts:
        return [_INDEX, *parts]
    pickled = sorted(name for name in names if name.endswith(modelfolder.PICKLED))
    if pickled:
        raise SettingsError(
            f"{place} must hold weights as safetensors ({_WEIGHTS}), but has only {pickled[0]}, a "
            f"pickle, which can run code when it is read. {_RESAVED}"
        )
    raise SettingsError(
        f"{place} must hold weights ({_WEIGHTS}), but has none. Copy them from where the "
        "configuration comes from."
    )


def _require_own_weights(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what makes transformers, or peft, take other weights than those that are hashed."""
    if config.get("transformers_weights") or (folder / _ADAPTER).exists():
        raise SettingsError(
            f"{folder} must hold its weights in {_WEIGHTS} alone, but names others "
            f"(`transformers_weights` in {CONFIGURATION}, or {_ADAPTER}). Save the whole model "
            "again with transformers' `save_pretrained`; an adapter goes in by `merge_and_unload`."
        )


def _require_parts(index: Path, names: Sequence[str]) -> None:
    """Refuse an index that names other files than the parts, which might be pickles."""
    found = modelfolder.json_object(index).get("weight_map")
    wanted = set(map(str, found.values())) if isinstance(found, dict) else {str(found)}
    strays = sorted(wanted - set(names))
    if strays:
        raise SettingsError(
            f"{index} must name files like model-00001-of-00002.safetensors that lie beside it, "
            f"but names {strays[0]}. Copy all of them from where the index comes from."
        )


def _processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the image processor's configuration where transformers would find it."""
    both, alone = (folder / name for name in _PROCESSORS)
    nested = modelfolder.json_object(both).get("image_processor") if both.is_file() else None
    if isinstance(nested, dict):
        return both, nested
    if not alone.is_file():
        raise SettingsError(
            f"{both} must have `image_processor`, or the folder must hold {alone.name}, but "
            "neither is so. Copy the file from where the weights come from."
        )
    return alone, modelfolder.json_object(alone)


def _dim(config: dict[str, Any], folder: Path) -> int:
    width = _WIDTHS[config["model_type"]]
    if config["model_type"] == "clip":
        return _whole(config.get("projection_dim", width), folder, "projection_dim")
    vision, text = _section(config, "vision_config"), _section(config, "text_config")
    dim = _whole(vision.get("hidden_size", width), folder, "hidden_size")
    of_text = text.get("projection_size") or text.get("hidden_size", width)
    if dim != of_text or not vision.get("vision_use_head", True):
        raise SettingsError(
            f"{folder / CONFIGURATION} must be of two towers that end with equal widths, but the "
            f"one for images has {dim} and that for texts {of_text}, or images have no head."
        )
    return dim


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a tower's configuration; that of old files, ending in `_dict`, goes first."""
    for found in (config.get(f"{name}_dict"), config.get(name)):
        if isinstance(found, dict):
            return found
    return {}


def _whole(value: object, folder: Path, name: str) -> int:
    if isinstance(value, int) and value > 0:
        return value
    raise SettingsError(
        f"{folder / CONFIGURATION} must have a whole number as `{name}`, but has {value!r}."
    )
