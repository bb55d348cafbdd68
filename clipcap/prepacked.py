"""A model for inference on a CPU in, the same one with its linear layers packed out.

A matrix product in torch brings its weights into the order that the processor likes each time.
oneDNN, which torch uses, can keep them so, and apply a GELU to what is still in a register: the
same numbers but for rounding, sooner. These are the operators behind the freezing of
`torch.compile`; where a torch or a processor lacks them, layers stay as they are.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

_LOG = logging.getLogger(__name__)
_TESTED: Final = ((3, 40, 24), (1, 24, 40))  # rows, inputs, outputs
_NEAR: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_GELUS: Final = {"NewGELUActivation": "tanh", "GELUTanh": "tanh", "FastGELUActivation": "tanh"}
_FAMILIES: Final = (
    {"c_fc", "c_proj"},
    {"fc1", "fc2"},
    {"gate_proj", "up_proj", "down_proj"},
    {"c_attn", "c_proj"},
    {"q_proj", "k_proj", "v_proj", "o_proj"},
    {"lm_head"},
)
"""Names of layers that stand together."""


class Packed(nn.Linear):
    """A linear layer for inference alone, with a GELU behind it or none.

    `gelu` is `none` (exact) or `tanh` as torch calls them; empty: no GELU.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, gelu: str = "") -> None:
        """Pack the weights."""
        nn.Module.__init__(self)  # no weights of its own
        self.out_features, self.in_features = weight_OI.shape
        self.dtype = weight_OI.dtype
        self.weight = weight_OI.new_full((), torch.nan).expand(weight_OI.shape)
        """Shape and number format, which some models ask a layer for; its numbers are none."""
        self._gelu = gelu
        self._weight = _operators()._reorder_linear_weight(weight_OI.detach().contiguous())
        self.bias = None if bias_O is None else bias_O.detach()  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, in the number format of the weights."""
        found: Tensor = _operators()._linear_pointwise(
            input.to(self.dtype),
            self._weight,
            self.bias,
            "gelu" if self._gelu else "none",
            [],
            self._gelu,
        )
        return found


def pack(model: nn.Module) -> int:
    """Pack the linear layers of a model in place, and return how many.

    They can be trained, saved and moved no more. GELUs that follow one are taken along. Only layers
    that are known to be called, and not asked for their weights: perceptrons, attention of
    transformers, the head.
    """
    count = 0
    for parent in list(model.modules()):
        names = {name for name, _ in parent.named_children()}
        for name in sorted(set().union(*(family for family in _FAMILIES if family <= names))):
            found = _weights(getattr(parent, name))
            if found is not None and works(found[0].dtype):
                setattr(parent, name, Packed(*found, _gelu_behind(parent, name)))
                count += 1
    return count


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return weights [out, in] and bias of a plain linear layer on a CPU; None of anything else."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type != "cpu" or weight.ndim != 2:
        return None
    if type(layer) is nn.Linear:
        return weight, layer.bias
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # of transformers' GPT-2
        bias: Any = layer.bias
        return weight.t(), bias
    return None


def _gelu_behind(parent: nn.Module, name: str) -> str:
    """Return the form of the GELU that follows a perceptron's first layer, taken out; empty: none.

    So those of open_clip, timm and transformers are built.
    """
    second = {"c_fc": "c_proj", "fc1": "fc2"}.get(name)
    if second is None or not _is_read_whole(getattr(parent, name), getattr(parent, second)):
        return ""
    for other in ("gelu", "act", "activation_fn"):
        layer = getattr(parent, other, None)
        form = layer.approximate if type(layer) is nn.GELU else _GELUS.get(type(layer).__name__, "")
        if form:
            setattr(parent, other, nn.Identity())
            return form
    return ""


def _is_read_whole(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether a layer reads what another gives, and not a half of it that the rest gates."""
    begun, ended = _weights(first), _weights(second)
    return begun is not None and ended is not None and len(begun[0]) == ended[0].shape[1]


def _operators() -> Any:  # noqa: ANN401 - torch has no types for them
    return torch.ops.mkldnn


@lru_cache
def works(dtype: torch.dtype) -> bool:
    """Tell whether packed layers give what plain ones do, in a number format on this machine."""
    is_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if dtype not in _NEAR or not is_there:
        return False
    try:
        with torch.inference_mode():
            return all(_difference(shape, dtype) <= _NEAR[dtype] for shape in _TESTED)
    except (RuntimeError, AttributeError, TypeError) as error:  # no such operator or format
        _LOG.info("linear layers are not packed in %s", dtype, exc_info=error)
        return False


def _difference(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    input_RI, weight_OI, bias_O = (
        torch.randn(size, generator=generator).to(dtype)
        for size in ((2, rows, inputs), (outputs, inputs), (outputs,))
    )
    wanted = nn.functional.linear(input_RI.float(), weight_OI.float(), bias_O.float())
    found = [
        (Packed(weight_OI, bias_O)(input_RI), wanted),
        (Packed(weight_OI, None)(input_RI), wanted - bias_O.float()),
        (Packed(weight_OI, bias_O, "none")(input_RI), nn.functional.gelu(wanted)),
        (
            Packed(weight_OI, bias_O, "tanh")(input_RI),
            nn.functional.gelu(wanted, approximate="tanh"),
        ),
    ]
    largest = wanted.abs().max()
    return max(float((one.float() - other).abs().max() / largest) for one, other in found)
