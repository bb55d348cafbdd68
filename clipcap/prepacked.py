"""A model for inference on a CPU in, the same one with its linear layers packed out.

A matrix product in torch brings its weights into the order that the processor likes each time.
oneDNN, which torch uses, can keep them so, and apply a GELU to what is still in a register: the
same numbers but for rounding, sooner; in 8 bits sooner still. These are the operators behind the
freezing of `torch.compile`; where a torch or a processor lacks them, layers stay as they are.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from clipcap.errors import SettingsError

Format = Literal["fp32", "bf16", "fp16", "int8"]
_DTYPES: Final = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,  # of what is not a matrix product
}
_LOG = logging.getLogger(__name__)
_TESTED: Final = ((3, 40, 24), (1, 24, 40))  # rows, inputs, outputs
_NEAR: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.int8: 3e-2}
_ZERO: Final = 128  # what stands for 0 in inputs of 8 bits
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


class Packed8(Packed):
    """The same with weights of 8 bits, a scale for each output, and inputs of 8 bits.

    Each input row has a scale of its own, so what it gives does not depend on those beside it.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, gelu: str = "") -> None:
        """Round and pack the weights."""
        super().__init__(weight_OI, bias_O, gelu)
        self._scale_O = weight_OI.float().abs().amax(1).clamp(min=1e-12) / 127
        rounded_OI = (weight_OI.float() / self._scale_O[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded_OI.contiguous(), None)
        self._zero_O = torch.zeros(self.out_features, dtype=torch.int32)

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs, in the number format of the weights that were given."""
        input_RI = input.reshape(-1, self.in_features).float()
        scale_R1 = input_RI.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        rounded_RI = (input_RI / scale_R1).add_(_ZERO + 0.5).to(torch.uint8)
        weights = (self._weight, self._scale_O, self._zero_O, None)
        output: tuple[Any, ...] = (1.0, 0, self.dtype, "none", [], "")
        found_RO: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded_RI, 1.0, _ZERO, *weights, *output
        )
        found_RO = found_RO.mul_(scale_R1.to(self.dtype))
        if self.bias is not None:
            found_RO += self.bias
        if self._gelu:
            found_RO = nn.functional.gelu(found_RO, approximate=self._gelu)
        return found_RO.view(*input.shape[:-1], self.out_features)


def lower(model: nn.Module, numbers: Format) -> None:
    """Bring a model into a number format and pack its layers, in place.

    Raises:
        SettingsError: `int8` on a GPU, or a processor or a model that does not do it.
    """
    is_int8 = numbers == "int8"
    if not pack(model.to(_DTYPES[numbers]), eight_bits=is_int8) and is_int8:
        raise SettingsError(
            '`precision: "int8"` is for x86 processors and known layers, and here it is not one '
            "or the language model has none of them. Choose `bf16` or `fp32`."
        )


def pack(model: nn.Module, *, eight_bits: bool = False) -> int:
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
            if found is not None and works(torch.int8 if eight_bits else found[0].dtype):
                kind = Packed8 if eight_bits else Packed
                setattr(parent, name, kind(*found, _gelu_behind(parent, name)))
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
    kind, number = (Packed8, torch.bfloat16) if dtype == torch.int8 else (Packed, dtype)
    generator = torch.Generator().manual_seed(0)
    input_RI, weight_OI, bias_O = (
        torch.randn(size, generator=generator).to(number)
        for size in ((2, rows, inputs), (outputs, inputs), (outputs,))
    )
    input_RI[0, 0], weight_OI[0] = 1.0, 1.0  # the largest sums, which some processors cut off
    wanted = nn.functional.linear(input_RI.float(), weight_OI.float(), bias_O.float())
    found = [
        (kind(weight_OI, bias_O)(input_RI), wanted),
        (kind(weight_OI, None)(input_RI), wanted - bias_O.float()),
        (kind(weight_OI, bias_O, "none")(input_RI), nn.functional.gelu(wanted)),
        (
            kind(weight_OI, bias_O, "tanh")(input_RI),
            nn.functional.gelu(wanted, approximate="tanh"),
        ),
    ]
    largest = wanted.abs().max()
    return max(float((one.float() - other).abs().max() / largest) for one, other in found)
