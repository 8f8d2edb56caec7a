"""Finds out whether a computation makes the host wait for its device, or reads host memory: a CUDA graph holds neither.

A capture that meets such a thing fails, and leaves torch's allocator broken for the process; so it is found before, in
an ordinary run on this thread alone. Kernels that other libraries register in Python are looked into, bitsandbytes'
among them. What a library does in C++ of its own stays unseen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SIZED_BY_VALUES = frozenset(
    f"aten::{name}" for name in ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
)  # how large their results are depends on values, for which the host waits
_READS = frozenset({"aten::_local_scalar_dense", "aten::equal", "aten::allclose"})
_INDEXED = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
_COPIES = frozenset({"aten::_to_copy", "aten::copy_", "aten::copy"})
_OF_TORCH = ("aten", "prims", "prim", "profiler")
_MASKS = (torch.bool, torch.uint8)


class HostWaits(Exception):
    """The computation cannot be a CUDA graph."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises HostWaits, from within `with`, where an operation on tensors of the device makes the host wait."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        keys: Any = torch._C.DispatchKey
        self._keys = (keys.CUDA if device.type == "cuda" else keys.CPU, keys.CompositeExplicitAutograd)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if self._waits(func, args, given):
            raise HostWaits(f"{func} waits for the device")
        with self:
            parts = func.decompose(*args, **given)  # in inference mode composed operations come as they are
            if parts is not NotImplemented:
                return parts
            key = None if func.namespace in _OF_TORCH else self._kernel_key(func)
            if key is not None:
                return func._op_dk(key, *args, **given)
        return func(*args, **given)

    def _kernel_key(self, func: Any) -> Any:
        """Of the kernel that the dispatcher would choose; called by its key, it stays in this mode's sight."""
        for key in self._keys:
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key.name):
                return key
        return None

    def _waits(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
        name = func._schema.name
        if name in _COPIES:
            return self._crosses(args, given)
        if not any(self._is_here(one) for one in _tensors([*args, *given.values()])):
            return False
        if name in _INDEXED:
            return any(index.dtype in _MASKS for index in _tensors(args[1])) and not _fills_masked(args)
        if name == "aten::repeat_interleave":
            return given.get("output_size") is None
        return name in _READS or name in _SIZED_BY_VALUES

    def _crosses(self, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
        """Between the host and the device, in either direction."""
        ends = {one.device.type for one in _tensors(args)}
        target = given.get("device")
        if target is not None:
            ends.add(torch.device(target).type)
        return len(ends) > 1

    def _is_here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._device.type


def _fills_masked(args: tuple[Any, ...]) -> bool:
    """`x[mask] = number`, which torch computes without knowing how many there are."""
    return len(args) > 2 and args[2].numel() == 1 and len(_tensors(args[1])) == 1 and not any(args[3:])


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those in it, and in lists in it."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found
