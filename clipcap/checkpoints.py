"""A checkpoint file of the original ClipCap in, its tensors and the shape they tell out.

Every number in it is looked at, and nothing in it is run.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor

from clipcap import dimensions
from clipcap.dimensions import HEAD, LANGUAGE_MODEL, MAPPER, WORDS, Shape, below, some
from clipcap.errors import SettingsError

_OBSOLETE: Final = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")
"""What transformers before 4.30 saved beside the weights: a mask and a number, the same always."""
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_UNREADABLE: Final = (
    UnpicklingError, BadZipFile, RuntimeError, EOFError, OSError, ValueError, LookupError,
    AttributeError, TypeError, ArithmeticError, MemoryError, struct.error, AssertionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds, without the prefixes of its names, in float32."""

    shape: Shape
    mapper: dict[str, Tensor]
    language_model: dict[str, Tensor]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint, of `ClipCaptionModel` or `ClipCaptionPrefix`.

    Names may stand below another (`module.` of DataParallel), the state dict in a larger one.

    Raises:
        SettingsError: it cannot be read without running something, is cut off, is none of
            ClipCap's, lacks tensors or has others, or holds NaN; says what was found.
    """
    tensors = _below_one_name(_state_dict(_load(path), path), path)
    tensors = {key: value for key, value in tensors.items() if not _OBSOLETE.fullmatch(key)}
    for name, tensor in tensors.items():
        _require_plain(name, tensor, path)
    if WORDS in tensors:
        tensors.setdefault(HEAD, tensors[WORDS])
    try:
        shape = dimensions.infer(tensors)
    except SettingsError as error:
        raise SettingsError(f"{path} is no checkpoint of ClipCap: {error}") from error
    wrong = dimensions.differences(tensors, shape)
    if wrong:
        raise SettingsError(f"{path} looks like {shape}, but of its tensors {'; '.join(wrong)}.")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise SettingsError(
                f"{path} holds NaN or infinity: {count} of {tensor.numel()} numbers of {name}. "
                "Its training ran away; take an earlier checkpoint."
            )
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    return Checkpoint(shape, below(tensors, MAPPER), below(tensors, LANGUAGE_MODEL))


def _load(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    if not path.is_file():
        raise SettingsError(f"There is no file {path}.")
    if _is_safetensors(path):
        raise SettingsError(
            f"{path} is a safetensors file; a checkpoint of the original ClipCap is a .pt file of "
            "`torch.save`. If it is of a captioner folder, give the folder to --captioner."
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch's, on odd files and old ones
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except _UNREADABLE as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise SettingsError(
                f"{path} holds more than tensors: {named[1]}, which was not run. A checkpoint of "
                "ClipCap is a state dict; save that alone (`torch.save(model.state_dict(), ...)`)."
            ) from None
        raise SettingsError(
            f"{path} is no whole file of `torch.save`: it is something else, damaged or cut off "
            f"({type(error).__name__})."
        ) from error


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _state_dict(found: object, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise SettingsError(f"{path} must hold a state dict, but holds a {type(found).__name__}.")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if len(tensors) != len(found) or not tensors:
        others = [str(key) for key in found if str(key) not in tensors]
        raise SettingsError(
            f"{path} must hold a state dict, names to tensors, but {some(others) or 'nothing'} "
            "is in it."
        )
    return tensors


def _below_one_name(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take away what stands before all names, such as `module.`."""
    ours = next((key for key in tensors if MAPPER in key), None)
    if ours is None:
        raise SettingsError(
            f"{path} is no checkpoint of ClipCap: no name in it has `{MAPPER}`. "
            f"It holds {len(tensors)} tensors: {some(tensors)}."
        )
    before = ours[: ours.index(MAPPER)]
    others = [key for key in tensors if not key.startswith(before)]
    if others:
        raise SettingsError(f"{path} has names below `{before}` and others: {some(others)}.")
    return {key.removeprefix(before): value for key, value in tensors.items()}


def _require_plain(name: str, tensor: Tensor, path: Path) -> None:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or not tensor.is_contiguous() or tensor.dtype not in _DTYPES:
        raise SettingsError(
            f"{path}: {name} must be a dense tensor of float32, float16 or bfloat16, but is "
            f"{tensor.dtype} {tuple(tensor.shape)} instead."
        )
