"""Rotary embedding by a native kernel, in attention layers that call transformers' `apply_rotary_pos_emb`.

That is a function which the layers' code finds among the names of its module. Nothing is changed there: the layer gets
a copy of its own `forward` in which the name means the kernel. Functions of that name differ between models (some turn
neighbours, not halves), so each is compared with the kernel first.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.layers.agreement import Findings, disagreement
from engine.native.kernels import Kernels

_NAME = "apply_rotary_pos_emb"
_PARAMETERS = ["q", "k", "cos", "sin"]
_KIND = "rotations"
_MARK = "rotates_natively"
_RENAMING_MODULE = "transformers.utils.deprecation"
_POSITIONS = (0, 1, 2, 63, 511, 4095)  # of the comparison
_DIM = 16

Rotate = Callable[..., tuple[Tensor, Tensor]]


def rotate_natively(name: str, model: Any, kernels: Kernels, findings: Findings) -> None:
    """Raises ModelFailure where the kernel fails."""
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for module in model.modules():
        if _NAME in inspect.unwrap(type(module).forward).__code__.co_names:
            kinds.setdefault(type(module), []).append(module)
    for kind, modules in kinds.items():
        untouched = [module for module in modules if "forward" not in module.__dict__]
        _count(findings, "somebody gave it another forward", len(modules) - len(untouched))
        reason = _refusal(name, model, kind, kernels)
        if reason is not None:
            _count(findings, reason, len(untouched))
            continue
        native = _native_forward(kind, kernels)
        for module in untouched:
            module.forward = types.MethodType(native, module)
        findings.replaced[_KIND] += len(untouched)


def rotates_natively(module: nn.Module) -> bool:
    return getattr(module.__dict__.get("forward"), _MARK, False)


def _count(findings: Findings, reason: str, number: int) -> None:
    if number:
        findings.refused[_KIND, reason] += number


def _refusal(name: str, model: Any, kind: type[nn.Module], kernels: Kernels) -> str | None:
    forward = own_forward(kind)
    if not isinstance(forward, types.FunctionType) or forward.__closure__ or _NAME not in forward.__code__.co_names:
        return "its forward is wrapped in another function"
    rotate = forward.__globals__.get(_NAME)
    if rotate is None or list(inspect.signature(rotate).parameters)[: len(_PARAMETERS)] != _PARAMETERS:
        return "it rotates by a function with other arguments"
    samples = [_sample(model, angles) for angles in (_known_angles(), _random_angles())]
    if not all(_can_rotate(kernels, *sample) for sample in samples):
        return f"the kernel does not take {model.dtype} on {model.device}"
    native = _native_rotate(rotate, kernels)
    reasons = (disagreement(name, rotate, native, sample) for sample in samples)
    return next((reason for reason in reasons if reason is not None), None)


def own_forward(kind: type[nn.Module]) -> Any:
    """The class's own, without what transformers wraps around it to take arguments by their former names: its models
    call each other by the present ones."""
    forward: Any = kind.forward
    while getattr(forward, "__globals__", {}).get("__name__") == _RENAMING_MODULE and hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    return forward


def _native_forward(kind: type[nn.Module], kernels: Kernels) -> types.FunctionType:
    """A copy of the class's `forward` that rotates by the kernel."""
    forward = own_forward(kind)
    assert isinstance(forward, types.FunctionType)
    names = {**forward.__globals__, _NAME: _native_rotate(forward.__globals__[_NAME], kernels)}
    copy = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    setattr(copy, _MARK, True)
    return copy


def _native_rotate(rotate: Rotate, kernels: Kernels) -> Rotate:
    """Changes `q` and `k` in place, which the layers' code does not use any more."""

    def native(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if arguments or kwargs or not _can_rotate(kernels, q, k, cos, sin):
            return rotate(q, k, cos, sin, *arguments, **kwargs)
        return kernels.rotate_(q, cos, sin), kernels.rotate_(k, cos, sin)

    return native


def _can_rotate(kernels: Kernels, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    fits = q.dim() == 4 and q.shape[0] == 1 and cos.dim() == 3 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
    return fits and kernels.can_take(q, k, cos, sin) and cos.stride() == sin.stride()


def _sample(model: Any, angles: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Queries and keys as projections leave them, cosines and sines, where and as the model has them."""
    generator = torch.Generator().manual_seed(1)
    heads = (torch.randn((1, len(_POSITIONS), number, _DIM), generator=generator).transpose(1, 2) for number in (3, 2))
    return [tensor.to(model.device, model.dtype) for tensor in (*heads, *angles)]


def _known_angles() -> tuple[Tensor, Tensor]:
    """Of positions near and far, as most models' tables have them."""
    frequencies = 10_000.0 ** -(torch.arange(0, _DIM, 2) / _DIM)
    halves = torch.tensor(_POSITIONS)[:, None] * frequencies
    angles = torch.cat((halves, halves), dim=-1)[None]
    return angles.cos(), angles.sin()


def _random_angles() -> tuple[Tensor, Tensor]:
    """Which of them meets which number of a head shows in every result."""
    generator = torch.Generator().manual_seed(2)
    cosines, sines = torch.randn((2, 1, len(_POSITIONS), _DIM), generator=generator)
    return cosines, sines
