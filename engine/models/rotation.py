"""Rotary embedding by a native kernel, in attention layers that call transformers' `apply_rotary_pos_emb`.

That is a function which the layers' code finds among the names of its module. Nothing is changed there: the layer gets
a copy of its own `forward` in which the name means the kernel.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.native.kernels import Kernels

_NAME = "apply_rotary_pos_emb"
_PARAMETERS = ["q", "k", "cos", "sin"]

Rotate = Callable[..., tuple[Tensor, Tensor]]


def rotate_natively(model: nn.Module, kernels: Kernels) -> int:
    """Returns for how many layers."""
    kinds = {type(module): _native_forward(type(module), kernels) for module in model.modules()}
    rotating = [module for module in model.modules() if kinds[type(module)] and "forward" not in module.__dict__]
    for module in rotating:
        module.forward = types.MethodType(kinds[type(module)], module)  # type: ignore[arg-type]  # not None
    return len(rotating)


def _native_forward(kind: type[nn.Module], kernels: Kernels) -> types.FunctionType | None:
    """A copy of the class's `forward` that rotates by the kernel; None where it does not rotate, or otherwise."""
    forward = kind.forward
    if not isinstance(forward, types.FunctionType) or forward.__closure__ or _NAME not in forward.__code__.co_names:
        return None
    rotate = forward.__globals__.get(_NAME)
    if rotate is None or list(inspect.signature(rotate).parameters)[: len(_PARAMETERS)] != _PARAMETERS:
        return None
    native = _native_rotate(rotate, kernels)
    if not _agree(rotate, native):
        return None
    names = {**forward.__globals__, _NAME: native}
    copy = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _native_rotate(rotate: Rotate, kernels: Kernels) -> Rotate:
    """Changes `q` and `k` in place, which the layers' code does not use any more."""

    def native(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        fits = q.dim() == 4 and q.shape[0] == 1 and cos.dim() == 3 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
        if arguments or kwargs or not (fits and kernels.can_take(q, k, cos, sin) and cos.stride() == sin.stride()):
            return rotate(q, k, cos, sin, *arguments, **kwargs)
        return kernels.rotate_(q, cos, sin), kernels.rotate_(k, cos, sin)

    return native


@torch.inference_mode()
def _agree(rotate: Rotate, native: Rotate) -> bool:
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 3, 5, 8), (1, 2, 5, 8), (1, 5, 8), (1, 5, 8)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    try:
        expected = rotate(*tensors)
        got = native(*(tensor.clone() for tensor in tensors))
    except Exception:  # noqa: BLE001  # a stranger's code may raise anything; then it stays
        return False
    return all(torch.allclose(*pair, atol=1e-6) for pair in zip(got, expected, strict=True))
