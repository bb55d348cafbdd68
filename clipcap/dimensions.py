"""The tensors of a checkpoint of the original ClipCap in, every dimension that they tell out.

The only place that knows the names in a state dict of rmokady/CLIP_prefix_caption: the mapper's
below `clip_project.`, GPT-2's below `gpt.`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from clipcap import registry
from clipcap.cards import Choice
from clipcap.errors import SettingsError

MAPPER: Final = "clip_project."
LANGUAGE_MODEL: Final = "gpt."
HEAD: Final = f"{LANGUAGE_MODEL}lm_head.weight"
WORDS: Final = f"{LANGUAGE_MODEL}transformer.wte.weight"
HEAD_WIDTH: Final = 64  # of GPT-2 in all its sizes; nothing in a checkpoint tells it
_POSITIONS: Final = f"{LANGUAGE_MODEL}transformer.wpe.weight"
_BLOCKS: Final = f"{LANGUAGE_MODEL}transformer.h."
_LAYERS: Final = "transformer.layers."
_AXES: Final = 2
_TOLD: Final = 3  # names in an error


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that the shapes of a checkpoint's tensors tell."""

    mapper: Choice
    dim_clip: int
    prefix_length: int
    dim_lm: int
    layers: int
    """Of GPT-2."""
    hidden: int
    """Width of GPT-2's hidden layers."""
    positions: int
    vocabulary: int

    def __str__(self) -> str:
        return (
            f"a {self.mapper.name} mapper (D={self.dim_clip}, P={self.prefix_length}) and a GPT-2 "
            f"of {self.layers} layers, {self.dim_lm} wide"
        )

    @property
    def heads(self) -> int:
        """Return GPT-2's heads."""
        return self.dim_lm // HEAD_WIDTH


def infer(tensors: dict[str, Tensor]) -> Shape:
    """Return the shape; what is not needed for it is not looked at.

    Raises:
        SettingsError: a tensor is missing, or has a shape that none of ClipCap's has.
    """
    if not any(key.startswith(LANGUAGE_MODEL) for key in tensors):
        raise SettingsError("it holds a mapper alone, but no language model (`gpt.`).")
    vocabulary, dim = _axes(tensors, WORDS)
    if dim % HEAD_WIDTH:
        raise SettingsError(
            f"the language model is {dim} wide, but GPT-2's width is a multiple of {HEAD_WIDTH}."
        )
    positions, _ = _axes(tensors, _POSITIONS)
    _, hidden = _axes(tensors, f"{_BLOCKS}0.mlp.c_fc.weight")
    mapper, dim_clip, prefix_length = _mapper(below(tensors, MAPPER), dim)
    return Shape(
        mapper=mapper,
        dim_clip=dim_clip,
        prefix_length=prefix_length,
        dim_lm=dim,
        layers=_count(tensors, _BLOCKS),
        hidden=hidden,
        positions=positions,
        vocabulary=vocabulary,
    )


def _mapper(tensors: dict[str, Tensor], dim_lm: int) -> tuple[Choice, int, int]:
    """Return which mapper it is, with its settings, D and P."""
    if "prefix_const" in tensors:
        dim_out, dim_clip = _axes(tensors, "linear.weight")
        hidden, _ = _axes(tensors, f"{_LAYERS}0.mlp.fc1.weight")
        settings = {
            "clip_length": _share(dim_out, dim_lm, "linear.weight"),
            "layers": _count(tensors, _LAYERS),
            "mlp_ratio": _ratio(hidden, dim_lm),
        }
        return _choice("transformer", settings), dim_clip, _axes(tensors, "prefix_const")[0]
    if "weight" in tensors:
        dim_out, dim_clip = _axes(tensors, "weight")
        return _choice("linear", {}), dim_clip, _share(dim_out, dim_lm, "weight")
    hidden, dim_clip = _axes(tensors, "model.0.weight")
    dim_out, _ = _axes(tensors, "model.2.weight")
    prefix_length = _share(dim_out, dim_lm, "model.2.weight")
    return _choice("mlp", {"hidden_ratio": _ratio(hidden, dim_out)}), dim_clip, prefix_length


def _choice(name: str, settings: dict[str, Any]) -> Choice:
    chosen = registry.load("clipcap.mappers", name).Settings.model_validate(settings)
    return Choice(name=name, settings=chosen.model_dump(mode="json", exclude_defaults=True))


def _ratio(hidden: int, whole: int) -> float:
    """Return the share that gives `hidden` when it is cut to a whole number."""
    ratio = hidden / whole
    return ratio if int(ratio * whole) == hidden else (hidden + 0.5) / whole


def _share(dim_out: int, dim_lm: int, name: str) -> int:
    if dim_out % dim_lm:
        raise SettingsError(
            f"{MAPPER}{name} gives {dim_out} numbers, which are no vectors as wide as the language "
            f"model ({dim_lm})."
        )
    return dim_out // dim_lm


def _axes(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in tensors:
        raise SettingsError(f"{name} is missing. It holds {len(tensors)} tensors: {some(tensors)}.")
    shape = tuple(tensors[name].shape)
    if len(shape) != _AXES or not math.prod(shape):
        raise SettingsError(f"{name} must be a matrix, but is of shape {shape} instead.")
    return shape[0], shape[1]


def _count(tensors: Mapping[str, Tensor], before: str) -> int:
    numbers = {key.removeprefix(before).split(".")[0] for key in tensors if key.startswith(before)}
    return len(numbers)


def language_model_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of GPT-2's tensors, as in the file."""
    dim, hidden = shape.dim_lm, shape.hidden
    layer = {
        "ln_1.weight": (dim,),
        "ln_1.bias": (dim,),
        "attn.c_attn.weight": (dim, 3 * dim),
        "attn.c_attn.bias": (3 * dim,),
        "attn.c_proj.weight": (dim, dim),
        "attn.c_proj.bias": (dim,),
        "ln_2.weight": (dim,),
        "ln_2.bias": (dim,),
        "mlp.c_fc.weight": (dim, hidden),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (hidden, dim),
        "mlp.c_proj.bias": (dim,),
    }
    below = f"{LANGUAGE_MODEL}transformer."
    return {
        WORDS: (shape.vocabulary, dim),
        _POSITIONS: (shape.positions, dim),
        **{
            f"{_BLOCKS}{n}.{name}": size
            for n in range(shape.layers)
            for name, size in layer.items()
        },
        f"{below}ln_f.weight": (dim,),
        f"{below}ln_f.bias": (dim,),
        HEAD: (shape.vocabulary, dim),
    }


def mapper_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the mapper's tensors; none is made."""
    module = registry.load("clipcap.mappers", shape.mapper.name)
    settings = module.Settings.model_validate(shape.mapper.settings)
    with torch.device("meta"):
        mapper = module.Mapper(settings, shape.dim_clip, shape.prefix_length, shape.dim_lm)
    return {name: tuple(tensor.shape) for name, tensor in mapper.state_dict().items()}


def differences(tensors: Mapping[str, Tensor], shape: Shape) -> list[str]:
    """Return what keeps the tensors from being exactly those of the shape, in words."""
    wanted = language_model_shapes(shape) | {
        f"{MAPPER}{name}": size for name, size in mapper_shapes(shape).items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    both = sorted(wanted.keys() & found.keys())
    missing, others = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    return [
        *[f"{len(missing)} are missing ({some(missing)})" for _ in range(bool(missing))],
        *[f"{len(others)} are not known ({some(others)})" for _ in range(bool(others))],
        *[
            f"{key} must be {wanted[key]}, but is {found[key]}"
            for key in both
            if wanted[key] != found[key]
        ],
    ]


def below(tensors: Mapping[str, Tensor], before: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without that."""
    return {k.removeprefix(before): one for k, one in tensors.items() if k.startswith(before)}


def some(names: Iterable[str]) -> str:
    """Return the first few names in words."""
    listed = sorted(names)
    more = f" and {len(listed) - _TOLD} more" if len(listed) > _TOLD else ""
    return f"{', '.join(name[:80] for name in listed[:_TOLD])}{more}"
