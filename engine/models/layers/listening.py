"""How a model in packed form calls its layers and their attention, heard while it runs.

A configuration tells of a window or a scale in a dozen ways; what counts is what the layers are given and what they ask
for. Says in an exception why what was heard is not of the kind that `decoder` knows.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from engine.generation import grid_attention
from engine.generation.attention_arguments import WITHOUT_EFFECT, layer_index
from engine.generation.packing import Packed
from engine.generation.scheduler import Piece
from engine.kv.grid import KvGrid
from engine.models.layers.rotation import own_forward, rotates_natively
from engine.models.probe import packed_logits
from engine.native.kernels import Kernels

Forward = Callable[[list[Piece]], Tensor]
"""As the probe takes it."""

_NAME = "millrace_listening"


class OtherKind(Exception):
    """Why a model keeps its layers."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Of one layer. query, key, value: heads and their dimension."""

    layer: int
    query: tuple[int, int]
    key: tuple[int, int]
    value: tuple[int, int]
    scale: float
    window: int | None
    softcap: float | None


@dataclass(slots=True)
class Heard:
    """logits: of the probe's steps. calls: one for each layer. rotary_dim: of the angles that all layers are given.

    kv: copies of all K/V that the steps left in `grid`, which holds zeros now.
    """

    logits: list[Tensor]
    calls: list[AttentionCall]
    rotary_dim: int
    grid: KvGrid
    kv: list[Tensor]


def listen(model: Any, layers: list[Any], kernels: Kernels, forward: Forward) -> Heard:
    """Raises OtherKind. Leaves the packed attention switched on."""
    calls: list[AttentionCall] = []
    given: list[dict[str, Any]] = []
    results: list[Any] = []
    AttentionInterface.register(_NAME, _listening(calls, kernels))
    hooks = [layer.register_forward_pre_hook(_noting(given), with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(lambda _, __, result: results.append(result)) for layer in layers]
    model.set_attn_implementation(_NAME)
    try:
        logits = packed_logits(model, forward)
    finally:
        model.set_attn_implementation(grid_attention.ATTENTION_NAME)
        for hook in hooks:
            hook.remove()
    if calls != calls[: len(layers)] * (len(calls) // len(layers)) or len(given) != len(calls):
        raise OtherKind("it does not call its layers once each, with their input and names for the rest, always alike")
    if [call.layer for call in calls[: len(layers)]] != list(range(len(layers))):
        raise OtherKind("it does not call its layers in their order")
    if not all(isinstance(result, Tensor) for result in results):
        raise OtherKind("its layers give more than a tensor")
    rotary_dims = {_check_arguments(arguments, given, model.dtype) for arguments in given}
    for layer in layers:
        _check_attention(layer.self_attn)
    grid = given[0]["packed"].grid
    return Heard(logits, calls[: len(layers)], rotary_dims.pop(), grid, take_kv(grid))


def take_kv(grid: KvGrid) -> list[Tensor]:
    """Copies of all K/V; zeros are left."""
    copies = [tensor.clone() for tensor in grid.tensors()]
    for tensor in grid.tensors():
        tensor.zero_()
    return copies


def are_fit(cosines: Tensor, sines: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels read these angles as what they are."""
    return (
        cosines.dim() == 3
        and cosines.dtype == sines.dtype == dtype
        and cosines.shape == sines.shape
        and cosines.stride() == sines.stride()
        and Kernels.can_take(cosines, sines)
    )


def _listening(calls: list[AttentionCall], kernels: Kernels) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, packed: Packed, **how: Any
    ) -> tuple[Tensor, None]:
        out = grid_attention.packed_attention(module, query, key, value, mask, packed=packed, **how)
        layer, scale = layer_index(module), how.get("scaling")
        if kernels.can_attend((packed.grid.keys(layer), packed.grid.values(layer)), query):
            query_line, key_line, value_line = ((tensor.shape[1], tensor.shape[3]) for tensor in (query, key, value))
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            window, softcap = how.get("sliding_window"), how.get("softcap")
            calls.append(AttentionCall(layer, query_line, key_line, value_line, scale, window, softcap))
        return out

    return attend


def _noting(given: list[dict[str, Any]]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def note(module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(arguments) == 1 and "packed" in kwargs:
            given.append(kwargs)

    return note


def _check_arguments(arguments: dict[str, Any], given: list[dict[str, Any]], dtype: torch.dtype) -> int:
    """The dimension of the angles."""
    unknown = [key for key in arguments.keys() - WITHOUT_EFFECT - {"packed"} if arguments[key] is not None]
    if unknown:
        raise OtherKind(f"its layers are given {', '.join(sorted(unknown))}")
    angles = arguments.get("position_embeddings")
    same_step = [other for other in given if other["packed"] is arguments["packed"]]
    if not isinstance(angles, tuple) or any(other.get("position_embeddings") is not angles for other in same_step):
        raise OtherKind("its layers do not share the angles of one rotation")
    if len(angles) != 2 or not are_fit(*angles, dtype):
        raise OtherKind("its angles are not of the dtype or form that the kernels read")
    return int(angles[0].shape[-1])


def _check_attention(attention: Any) -> None:
    """What a layer does by itself with the positions would show only in long sequences."""
    if not rotates_natively(attention):
        raise OtherKind("its heads are rotated by its own code")
    own = inspect.unwrap(own_forward(type(attention)))
    named = {"position_ids", "cache_position"} & set(inspect.signature(own).parameters)
    if named:
        raise OtherKind(f"its attention reads {', '.join(sorted(named))}")
