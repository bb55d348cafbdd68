"""A GPU that is not there: tensors of `cuda:0` lie in memory, but keep a GPU's rules.

Within `gpu()` a tensor that is made on or moved to `cuda` is `Away`. What would fail on a GPU fails
here: operators over tensors of both kinds, an index or values from the other side, `numpy` without
a copy, operators of a CPU's libraries. A CUDA graph holds what was called while it was recorded and
calls it again, on the same memory; what waits for the device, or has a size that depends on
numbers, cannot be recorded. It shows nothing of speed, memory, rounding, or of what overlaps:
streams and events do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace
from typing import Any, Final, Self

import pytest
import torch
import torch._dynamo  # looks through `torch.cuda` when it is first imported
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

Call = tuple[OpOverload, Sequence[Any], dict[str, Any], Any]

_GPU: Final = torch.device("cuda:0")
_ATEN: Final = torch.ops.aten
_COPIES: Final = {_ATEN.copy_.default, _ATEN._to_copy.default}
_PUTS: Final = {
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
}
_WAITS: Final = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.nonzero.default,
    _ATEN.repeat_interleave.Tensor,
    _ATEN._unique2.default,
}
_COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd
_tape: list[list[Call]] = []
"""What is being recorded: none or one."""


class Away(Tensor):
    """A tensor on the GPU; `inner` has its numbers."""

    inner: Any  # a tensor; torch has a method of that name
    device = property(lambda _: _GPU)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    @staticmethod
    def __new__(cls: type[Self], inner: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cpu"),  # of a GPU's torch's own code would ask a driver
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,  # noqa: ANN401 - as torch's
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as above
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **given)
        if func in (Tensor.to, Tensor.type_as) and isinstance(args[1], Away):
            return args[0].to(_GPU, args[1].dtype)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **given)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: OpOverload,
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator gives
        return _called(func, args, dict(kwargs or {}))

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        mine = nn.Parameter(other, requires_grad=self.requires_grad)
        torch.utils.swap_tensors(self, mine)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, known: dict[int, object]) -> Tensor:
        copied = self.detach().clone()
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=self.requires_grad)
        known[id(self)] = copied
        return copied

    def untyped_storage(self) -> torch.UntypedStorage:
        found: torch.UntypedStorage = self.inner.untyped_storage()
        return found

    def data_ptr(self) -> int:
        return int(self.inner.data_ptr())

    def cpu(self, *_: object) -> Tensor:
        _wait("cpu")
        found: Tensor = self.inner.detach().clone()
        return found

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - as torch's
        device, dtype = _place(args, kwargs)
        found: Tensor = self if dtype in (None, self.dtype) else self.type(dtype)
        if device is not None and device.type == "cpu":
            return found.cpu()
        return found.clone() if kwargs.get("copy") and found is self else found

    def tolist(self) -> Any:  # noqa: ANN401 - as torch's
        _wait("tolist")
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:  # noqa: ANN401 - as torch's
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.cpu().numpy(force=True)

    def __array__(self, *_: object, **__: object) -> Any:  # noqa: ANN401 - as torch's
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"Away({self.inner!r})"


class _Gpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees operators that no tensor `Away` is given to, such as those that make tensors."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator gives
        given = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(_COMPOSITE):
            with self:
                found = func.decompose(*args, **given)
            if found is not NotImplemented:
                return found
        return _called(func, args, given)


class Graph:
    """Calls what was recorded again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def replay(self) -> None:
        """Write the results where they were when it was recorded."""
        with _disable_current_modes(), torch.inference_mode():
            for func, args, kwargs, before in self.calls:
                for old, new in zip(
                    tree_leaves(before), tree_leaves(func(*args, **kwargs)), strict=True
                ):
                    if isinstance(old, Tensor) and not _is_same_memory(old, new):
                        old.copy_(new)


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@contextmanager
def _recorded(graph: Graph, **_: object) -> Iterator[None]:
    _wait("recording")
    _tape.append(graph.calls)
    try:
        yield
    finally:
        _tape.clear()


def _wait(what: str) -> None:
    """Refuse what needs the device's answer while nothing is run."""
    if _tape:
        raise RuntimeError(f"operation not permitted when stream is capturing: {what}")


def _called(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever the operator gives
    """Run an operator on the numbers, where a GPU would run it."""
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    away = [one for one in given if isinstance(one, Away)]
    here = [one for one in given if not isinstance(one, Away)]
    device = kwargs.get("device")
    if away and torch._C._current_graph_task_id() < 0:  # gradients are torch's own affair
        _require_one_place(func, args, here)
    inner_args, inner_kwargs = tree_map(
        lambda one: one.inner if isinstance(one, Away) else one, (tuple(args), kwargs)
    )
    inner_kwargs.pop("pin_memory", None)
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    found = func(*inner_args, **inner_kwargs)
    goes_away = bool(away) and func is not _ATEN._local_scalar_dense.default
    if device is not None:
        goes_away = torch.device(device).type == "cuda"
    elif func is _ATEN.copy_.default:
        goes_away = isinstance(args[0], Away)
    if _tape and (away or goes_away):
        if func in _COPIES and (here or not goes_away):
            _wait("a copy between devices")
        _tape[0].append((func, inner_args, inner_kwargs, found))
    return _wrapped(found, away) if goes_away else found


def _wrapped(found: Any, away: Sequence[Away]) -> Any:  # noqa: ANN401 - whatever the operator gives
    known = {id(one.inner): one for one in away}  # what is changed in place stays itself

    def wrapped(one: Any) -> Any:  # noqa: ANN401 - as above
        if not isinstance(one, Tensor):
            return one
        with torch.inference_mode(mode=False):
            return known[id(one)] if id(one) in known else Away(one)

    return tree_map(wrapped, found)


def _require_one_place(func: OpOverload, args: Sequence[Any], here: Sequence[Tensor]) -> None:
    """Refuse what a GPU would; single numbers of the CPU it takes, and indices from there."""
    name = str(func)
    if name.startswith(("mkldnn", "onednn")):
        raise NotImplementedError(f"Could not run {name} with arguments from the CUDA backend")
    if func in _WAITS:
        _wait(name)
    if func is _ATEN.index.Tensor or func in _PUTS:
        if not isinstance(args[0], Away):
            raise RuntimeError(f"{name}: indices should be on the CPU")
        indices = [one for one in args[1] if isinstance(one, Tensor)]
        if any(one.dtype == torch.bool or not isinstance(one, Away) for one in indices):
            _wait(name)
        here = [args[2]] if func in _PUTS and not isinstance(args[2], Away) else []
    if func not in _COPIES and any(one.dim() for one in here):
        shapes = [tuple(one.shape) for one in here]
        raise RuntimeError(f"{name}: expected all tensors on one device, but {shapes} are not")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **more: Any,  # noqa: ANN401 - as torch's
) -> Tensor:
    """Attend; torch's own code would make masks where it sees the numbers lie."""
    if more.get("enable_gqa"):
        times = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(times, 1) for one in (key, value))
    score = query @ key.mT * (more.get("scale") or query.shape[-1] ** -0.5)
    if more.get("is_causal"):
        attn_mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        score = score.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        score = score + attn_mask
    return functional.dropout(score.softmax(-1), more.get("dropout_p", 0.0)) @ value


def _place(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.device | None, torch.dtype | None]:
    if args and isinstance(args[0], Tensor):
        return args[0].device, args[0].dtype
    rest = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **rest)
    return device, dtype


@contextmanager
def _nothing(*_: object, **__: object) -> Iterator[None]:
    yield


class _Idle:
    """A stream or an event: all is done at once."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def synchronize(self) -> None:
        _wait("synchronize")

    def wait_stream(self, _: object) -> None: ...


def _ignored(*_: object, **__: object) -> None: ...


_run: Final = Thread.run


def _run_there(thread: Thread) -> None:
    with _Gpu():  # type: ignore[no-untyped-call]
        _run(thread)


_CUDA: Final[Mapping[str, Callable[..., Any]]] = {
    "CUDAGraph": Graph,
    "Event": _Idle,
    "Stream": _Idle,
    "_lazy_init": _ignored,
    "current_device": lambda: 0,
    "current_stream": _Idle,
    "device": _nothing,
    "device_count": lambda: 1,
    "empty_cache": _ignored,
    "get_device_name": lambda *_: "pretended",
    "get_device_properties": lambda *_: SimpleNamespace(name="pretended", total_memory=1 << 34),
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "graph": _recorded,
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "max_memory_allocated": lambda *_: 1 << 20,
    "set_device": _ignored,
    "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    "stream": _nothing,
    "synchronize": lambda *_: _wait("synchronize"),
}


@contextmanager
def gpu() -> Iterator[None]:
    """Pretend that there is a GPU, where there is none."""
    if torch.cuda.is_available():
        yield
        return
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    lifts = torch._C._only_lift_cpu_tensors()
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in _CUDA.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(Tensor, "pin_memory", lambda self, *_: self.clone())
        patch.setattr(Tensor, "record_stream", _ignored)
        patch.setattr(Thread, "run", _run_there)
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            with _Gpu():  # type: ignore[no-untyped-call]
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)
            torch._C._set_only_lift_cpu_tensors(lifts)
