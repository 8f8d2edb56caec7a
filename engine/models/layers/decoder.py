"""Runs the layers of a decoder in one native call, where they are of the kind that most models have.

That is Llama's: a norm, attention over rotated heads (with norms of their own or without), both added to what came in,
then a norm and a gated layer, added again. Its layers must have been replaced by native ones already. How attention is
called is not read from a configuration but heard while the model runs (`listening`); whether all this is right is not
believed but compared, logits with logits and K/V with K/V. A model of another kind, or one that then computes something
else, keeps its layers as they are, and the log says why.

The first layer does the work of all; the others hand on what they get.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import MillraceError, ModelFailure
from engine.generation.packing import Packed
from engine.models.layers.agreement import WAY_OUT
from engine.models.layers.listening import AttentionCall, Forward, Heard, OtherKind, are_fit, listen, take_kv
from engine.models.layers.native_layers import NativeGatedMlp, NativeLinear, NativeRmsNorm, SharingLinear
from engine.models.probe import difference, packed_logits
from engine.native.decoder import Decoder, DecoderLayer, DecoderShape, DecoderStep, NormWeight
from engine.native.kernels import TILE_TOKENS, Kernels
from engine.native.products import PackedWeight

logger = logging.getLogger(__name__)

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}

# The same kernels do the same in the same order; only the last layer's attention is cut into other tiles.
_LIMITS = {torch.float32: 1e-6, torch.bfloat16: 2e-3}


@torch.inference_mode()
def run_layers_as_one(name: str, model: Any, kernels: Kernels, forward: Forward) -> bool:
    """forward: of the model in packed form, whose attention is switched on. Returns whether its layers now run as one.

    Raises ModelFailure where the kernels fail. Writes K/V as the probe does.
    """
    try:
        layers = _layers(model)
        heard = listen(model, layers, kernels, forward)
        decoder = _decoder(layers, heard, kernels, model.dtype)
        _take_over(layers, decoder)
        try:
            _compare(name, model, forward, heard)
        except BaseException:
            for layer in layers:
                del layer.forward
            raise
    except OtherKind as reason:
        logger.info("%s: its layers run one by one, somewhat more slowly: %s", name, reason)
        return False
    logger.info("%s: its %d layers run as one", name, len(layers))
    return True


def _layers(model: Any) -> list[Any]:
    layers = getattr(getattr(model, "base_model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise OtherKind("it keeps no list of layers")
    for layer in layers:
        if {name for name, _ in layer.named_children()} != _LAYER:
            raise OtherKind(f"{type(layer).__name__} is more than a norm, attention, a norm and a gated layer")
        if "forward" in layer.__dict__ or layer._forward_hooks or layer._forward_pre_hooks:
            raise OtherKind("somebody changed a layer")
    return list(layers)


def _decoder(layers: list[Any], heard: Heard, kernels: Kernels, dtype: torch.dtype) -> Decoder:
    calls, first = heard.calls, heard.calls[0]
    if any((call.query, call.key, call.value) != (first.query, first.key, first.value) for call in calls):
        raise OtherKind("its layers have heads of different shapes")
    if (
        heard.rotary_dim > first.key[1]
        or first.query[1] != first.key[1]
        or first.query[0] % first.key[0]
        or first.key[0] != first.value[0]
    ):
        raise OtherKind("its heads are not of the kind that the kernels know")
    parts = [_parts(layer, call) for layer, call in zip(layers, calls, strict=True)]
    activation = layers[0].mlp.activation
    shape = DecoderShape(
        dtype=dtype,
        activation=activation,
        width=parts[0].query.depth,
        num_heads=first.query[0],
        num_kv_heads=first.key[0],
        key_dim=first.key[1],
        value_dim=first.value[1],
        inner=parts[0].down.depth,
    )
    for layer, part in zip(layers, parts, strict=True):
        if layer.mlp.activation != activation or not _fits(part, shape):
            raise OtherKind("its layers differ in shape")
    return kernels.decoder(shape, parts)


def _parts(layer: Any, call: AttentionCall) -> DecoderLayer:
    attention = layer.self_attn
    names = {name for name, _ in attention.named_children()}
    if names - _HEAD_NORMS != _ATTENTION or len(names & _HEAD_NORMS) == 1:
        raise OtherKind(f"a {type(attention).__name__} has other parts than four projections and norms of heads")
    if not isinstance(layer.mlp, NativeGatedMlp):
        raise OtherKind("its gated layers are not native")
    gate, up, down = layer.mlp.weights
    return DecoderLayer(
        input_norm=_norm(layer.input_layernorm),
        query_norm=_norm(attention.q_norm) if _HEAD_NORMS & names else None,
        key_norm=_norm(attention.k_norm) if _HEAD_NORMS & names else None,
        inner_norm=_norm(layer.post_attention_layernorm),
        query=_weight(attention.q_proj),
        key=_weight(attention.k_proj),
        value=_weight(attention.v_proj),
        output=_weight(attention.o_proj),
        gate=gate,
        up=up,
        down=down,
        scale=call.scale,
        window=call.window,
        softcap=call.softcap,
    )


def _norm(module: Any) -> NormWeight:
    if not isinstance(module, NativeRmsNorm):
        raise OtherKind("its norms are not native")
    return NormWeight(module.weight.detach().contiguous(), module.epsilon, module.is_offset)


def _weight(module: Any) -> PackedWeight:
    if not isinstance(module, NativeLinear | SharingLinear):
        raise OtherKind("its linear layers are not native")
    return module.packed


def _fits(layer: DecoderLayer, shape: DecoderShape) -> bool:
    """Nobody checks an address once the kernels run."""
    queries, keys = shape.num_heads * shape.key_dim, shape.num_kv_heads * shape.key_dim
    values, attended = shape.num_kv_heads * shape.value_dim, shape.num_heads * shape.value_dim
    expected = {
        layer.query: (queries, shape.width), layer.key: (keys, shape.width), layer.value: (values, shape.width),
        layer.output: (shape.width, attended), layer.gate: (shape.inner, shape.width),
        layer.up: (shape.inner, shape.width), layer.down: (shape.width, shape.inner),
    }  # fmt: skip
    norms = (layer.input_norm, layer.inner_norm, layer.query_norm, layer.key_norm)
    dims = (shape.width, shape.width, shape.key_dim, shape.key_dim)
    return all(
        (weight.columns, weight.depth) == form and weight.panels.dtype == shape.dtype
        for weight, form in expected.items()
    ) and all(
        norm is None or (norm.weight.shape == (dim,) and norm.weight.dtype == shape.dtype)
        for norm, dim in zip(norms, dims, strict=True)
    )


def _take_over(layers: list[Any], decoder: Decoder) -> None:
    for index, layer in enumerate(layers):
        layer.forward = _All(layer.forward, decoder) if index == 0 else _Nothing(layer.forward)


class _Nothing:
    """A layer whose work the first one has done."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own

    def __call__(self, hidden: Tensor, *arguments: Any, packed: Packed | None = None, **kwargs: Any) -> Any:
        return self._own(hidden, *arguments, **kwargs) if packed is None else hidden


class _All:
    """The first layer, which does the work of all."""

    def __init__(self, own: Callable[..., Any], decoder: Decoder) -> None:
        self._own = own
        self._decoder = decoder
        shape = decoder.shape
        self._key_line, self._value_line = (shape.num_kv_heads, shape.key_dim), (shape.num_kv_heads, shape.value_dim)

    def __call__(self, hidden: Tensor, *arguments: Any, packed: Packed | None = None, **kwargs: Any) -> Any:
        if packed is None:
            return self._own(hidden, *arguments, **kwargs)
        cosines, sines = kwargs["position_embeddings"]
        dtype = self._decoder.shape.dtype
        if hidden.dtype != dtype or not are_fit(cosines, sines, dtype):
            raise ModelFailure(f"expected embeddings and angles in {dtype} as at load time, got others; {WAY_OUT}")
        step = DecoderStep(
            cosines=cosines,
            sines=sines,
            cells=packed.cells,
            tiles=packed.tiles,
            tile_tokens=TILE_TOKENS,
            last_tiles=packed.last_tiles,
            wanted=packed.logits_at,
            grids=[
                packed.grid.pair(index, self._key_line, self._value_line, hidden)
                for index in range(len(self._decoder.layers))
            ],
        )
        return self._decoder.run_(hidden.clone(memory_format=torch.contiguous_format), step)


def _compare(name: str, model: Any, forward: Forward, heard: Heard) -> None:
    """Logits, and all K/V: there every layer shows by itself."""
    try:
        logits = packed_logits(model, forward)
    except MillraceError:
        raise
    except Exception as error:  # behind a fallback nobody would see that a kernel fails
        raise ModelFailure(
            f"{name}: expected its layers to run as one, got {type(error).__name__}: {error}; {WAY_OUT}"
        ) from error
    got, expected = [*logits, *take_kv(heard.grid)], [*heard.logits, *heard.kv]
    worst = max(difference(*pair) for pair in zip(got, expected, strict=True))
    if not worst <= _LIMITS[model.dtype]:  # NaN fails too
        raise OtherKind(f"as one they compute something else (relative difference {worst:.2g})")
