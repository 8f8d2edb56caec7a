"""Whether what takes a layer's place computes the same as the layer, and what was found so over a whole model.

The comparison runs where its inputs lie and in their dtype, which must be the model's own: kernels decline what lies
elsewhere, and a layer would be compared with itself.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelFailure
from engine.models.probe import difference

logger = logging.getLogger(__name__)

WAY_OUT = "start its engine with --no-native, or set MILLRACE_ENGINE_KERNELS=torch"

_LIMITS = {torch.float32: 1e-5, torch.float16: 0.002, torch.bfloat16: 0.01}  # relative; bfloat16 rounds by up to 0.004


@dataclass(slots=True)
class Findings:
    """replaced: layers by kind. refused: layers by kind and reason. A kind is a plural, as in `norms`."""

    replaced: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def log(self, name: str) -> None:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.replaced.items())) or "nothing"
        logger.info("%s: kernels made for this machine compute %s", name, kinds)
        for (kind, reason), number in sorted(self.refused.items()):
            logger.warning("%s: left to transformers' own, slower code: %d %s: %s", name, number, kind, reason)


@torch.inference_mode()
def disagreement(name: str, own: Callable[..., Any], native: Callable[..., Any], tensors: list[Tensor]) -> str | None:
    """Why `native` may not stand for `own`, or None. Raises ModelFailure where it is `native` that fails.

    Both get copies of the tensors, and give a tensor or a tuple of them.
    """
    try:
        expected = _results(own(*(tensor.clone() for tensor in tensors)))
    except Exception as error:  # noqa: BLE001  # a stranger's code may raise anything; then it stays
        return f"by itself it does not compute random numbers ({type(error).__name__}: {error})"
    try:
        return _difference(_results(native(*(tensor.clone() for tensor in tensors))), expected)
    except Exception as error:  # compilers, drivers and kernels raise anything; behind a fallback nobody would see it
        raise ModelFailure(
            f"{name}: expected the kernels made for this machine to run, got {type(error).__name__}: {error}; {WAY_OUT}"
        ) from error


def _results(given: Any) -> tuple[Any, ...]:
    return given if isinstance(given, tuple) else (given,)


def _difference(got: tuple[Tensor, ...], expected: tuple[Any, ...]) -> str | None:
    if [_form(result) for result in got] != [_form(result) for result in expected]:
        return "it gives results of another form"
    worst = max(difference(*pair) for pair in zip(got, expected, strict=True))
    if worst <= _LIMITS[got[0].dtype]:
        return None
    return f"it computes something else (relative difference {worst:.2g})"  # NaN too


def _form(result: Any) -> tuple[torch.Size, torch.dtype] | None:
    return (result.shape, result.dtype) if isinstance(result, Tensor) else None
