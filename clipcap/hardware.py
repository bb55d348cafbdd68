"""A device in; what it is, and in which number format it computes fastest, out."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final, Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_BF16_FLAGS: Final = frozenset(("avx512_bf16", "amx_bf16"))
"""Without one of them bf16 is emulated, and slower than float32."""
_CPUINFO: Final = Path("/proc/cpuinfo")


def name(device: torch.device) -> str:
    """Return what two machines have in common when they compute alike and equally fast."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model, flags = _processor()
    kinds = hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:8]
    return f"{model} {kinds}"


def fastest(device: torch.device) -> Precision:
    """Return the fastest number format of a device: fp32 on a CPU without instructions for bf16."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp16"
    return "bf16" if _processor()[1] & _BF16_FLAGS else "fp32"


@cache
def _processor() -> tuple[str, frozenset[str]]:
    """Return the name and the instruction sets of the CPU, as far as Linux says them."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return "cpu", frozenset()
    said = {}
    for line in text.splitlines():
        field, _, value = line.partition(":")
        said[field.strip()] = value.strip()
    model = said.get("model name", "cpu")
    return model, frozenset((said.get("flags") or said.get("Features") or "").split())
