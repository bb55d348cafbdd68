"""A folder in open_clip's own form in, its configuration, safe weights and tokenizer out.

What a folder lacks is refused here: open_clip itself loads one without preprocessing and embeds
silently wrong (its issue 1068), and takes pickled weights, which can run code when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

from clipcap.errors import SettingsError
from clipcap.settings import digest

CONFIGURATION: Final = "open_clip_config.json"
TOKENIZERS: Final = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json", "tokenizer.model")
TOKENIZER_PARTS: Final = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "config.json",
)
_FIRST_CHOICES: Final = (  # open_clip's own order: what it would take is what must be safe
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_SAFE: Final = ".safetensors"
PICKLED: Final = (".bin", ".pth", ".pt")
_DEFAULTS: Final[dict[str, Any]] = {  # open_clip's values of what a model card may leave out
    "mode": "RGB",
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
_IMAGE_SIZE: Final = 224  # open_clip's default, pixels
_BLOCK_BYTES: Final = 2**20
_SHA256_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """What an encoder is made of; all of it lies on this machine."""

    loader: ClassVar = "openclip"
    model_cfg: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    tokenizer: Path | None
    """The folder of the tokenizer; None: the one that open_clip brings."""

    @property
    def dim(self) -> int:
        """Return D, the width of an embedding."""
        return int(self.model_cfg["embed_dim"])

    @property
    def weights_sha256(self) -> str:
        """Return the digest of the weights."""
        return sha256(self.weights)

    @property
    def config_sha256(self) -> str:
        """Return the digest of the configuration and of the tokenizer's files."""
        files = {}
        if self.tokenizer is not None:
            paths = (self.tokenizer / name for name in TOKENIZER_PARTS)
            files = {path.name: sha256(path) for path in paths if path.is_file()}
        return digest({"model_cfg": self.model_cfg, "tokenizer": files})

    @property
    def whole_preprocess(self) -> dict[str, Any]:
        """Return the preprocessing with defaults filled in, so that equals have one digest."""
        size = self.model_cfg["vision_cfg"].get("image_size", _IMAGE_SIZE)
        return {
            **{key: self.preprocess.get(key) or value for key, value in _DEFAULTS.items()},
            "size": list(size) if isinstance(size, list) else [size, size],
            "mean": _three(self.preprocess["mean"]),
            "std": _three(self.preprocess["std"]),
        }


def read(folder: Path) -> Parts:
    """Return the parts of a folder.

    Raises:
        SettingsError: configuration, preprocessing, safe weights or tokenizer is missing.
    """
    names = file_names(folder)
    model_cfg, preprocess = read_configuration(folder)
    weights = folder / choose_weights(names, str(folder))
    tokenizer = model_cfg["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and not any(name in names for name in TOKENIZERS):
        raise SettingsError(
            f"The folder {folder} must hold the model's tokenizer (tokenizer.json and "
            "tokenizer_config.json), but has none. Add it: "
            f"`hf download {tokenizer} tokenizer.json tokenizer_config.json --local-dir {folder}`."
        )
    return Parts(model_cfg, preprocess, weights, folder if tokenizer else None)


def file_names(folder: Path) -> list[str]:
    """Return the names of the files in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def read_configuration(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `model_cfg` and `preprocess_cfg` of a folder.

    Raises:
        SettingsError: one of them is missing or malformed; says how to add it.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        raise SettingsError(
            f"The folder {folder} must hold {CONFIGURATION}, but has none. Copy it from where the "
            'weights come from; it holds {"model_cfg": ..., "preprocess_cfg": ...}. In the form of '
            "transformers it must hold config.json."
        )
    whole = json_object(path)
    model_cfg, preprocess = whole.get("model_cfg"), whole.get("preprocess_cfg")
    if not isinstance(model_cfg, dict) or not _is_model_cfg(model_cfg):
        raise SettingsError(
            f"{path} must have `model_cfg` with `embed_dim`, `vision_cfg` and `text_cfg`, but has "
            "not. Copy the file from where the weights come from."
        )
    if not isinstance(preprocess, dict) or not {"mean", "std"} <= set(preprocess):
        raise SettingsError(
            f"{path} must have `preprocess_cfg` with the `mean` and `std` that the weights were "
            "trained with, but has not; a guess would make every embedding silently wrong. Add it "
            'from the model\'s card, for example "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], '
            '"std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}.'
        )
    return model_cfg, preprocess


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where another thing is in it.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} must be JSON, but cannot be read: {error}.") from error
    return read if isinstance(read, dict) else {}


def choose_weights(names: Sequence[str], place: str) -> str:
    """Return the weights that open_clip would take out of a folder, if they are safetensors.

    Raises:
        SettingsError: there are none, or only pickled ones, or open_clip would take a pickled one.
    """
    preferred = [name for name in _FIRST_CHOICES if name in names]
    safe = sorted(name for name in names if name.endswith(_SAFE))
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    chosen = next(iter([*preferred, *safe, *pickled]), None)
    if chosen is None:
        raise SettingsError(
            f"{place} must hold weights (open_clip_model.safetensors), but has none. "
            "Copy them from where the configuration comes from."
        )
    if not chosen.endswith(_SAFE):
        raise SettingsError(
            f"{place} must hold weights as safetensors, but open_clip would take {chosen}, a "
            "pickle, which can run code when it is read. Convert it once, where you trust it: "
            f"`safetensors.torch.save_file(torch.load({chosen!r}, weights_only=True), "
            "'open_clip_model.safetensors')`, and remove it."
        )
    return chosen


def choose_tokenizer(names: Sequence[str]) -> list[str]:
    """Return the tokenizer's files out of a repository's names."""
    if not any(name in names for name in TOKENIZERS):
        raise SettingsError("A tokenizer's repository must hold tokenizer.json, but does not.")
    return [name for name in TOKENIZER_PARTS if name in names]


def choose_architecture(names: Sequence[str]) -> list[str]:
    """Return the one file that describes a text tower of transformers."""
    if "config.json" not in names:
        raise SettingsError("A text tower's repository must hold config.json, but does not.")
    return ["config.json"]


def size_bytes(folder: Path) -> int:
    """Return the sum of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """Return a file's sha256; the hub's cache names large files by it, so those are not read."""
    real = path.resolve()
    if real.parent.name == "blobs" and len(real.name) == _SHA256_LENGTH:
        return real.name
    status = real.stat()
    return _sha256(real, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, _size_bytes: int, _mtime_ns: int) -> str:
    """Read the file once in a process, and again when its size or time has changed."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def _is_model_cfg(model_cfg: dict[str, Any]) -> bool:
    towers = all(isinstance(model_cfg.get(key), dict) for key in ("vision_cfg", "text_cfg"))
    return towers and isinstance(model_cfg.get("embed_dim"), int)


def _three(value: float | list[float]) -> list[float]:
    """Return three channels' numbers; one number stands for all of them, as in open_clip."""
    return [float(one) for one in value] if isinstance(value, list) else [float(value)] * 3
