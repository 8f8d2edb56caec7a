"""Which models this engine serves, told from their configuration before any weight is read.

Served is every decoder that looks its attention up in transformers' attention interface and keeps K/V for every token.
What that cannot express is refused by name with the reason.
"""

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from core.errors import ModelFailure

_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})
_SERVED = (
    "served are decoders that use transformers' attention interface, such as Llama, Qwen, Mistral, Gemma, Phi, GPT-2"
)
_REGIME_BOUND = frozenset({"dynamic", "longrope"})


def check_support(name: str, config: PretrainedConfig) -> None:
    """Raises ModelFailure with one sentence."""
    reason = _refusal(config)
    if reason is not None:
        raise ModelFailure(f"{name} is a {config.model_type!r} model, which {reason}; {_SERVED}")


def context_bound(config: PretrainedConfig) -> int | None:
    """Tokens that the position embedding allows; None where the configuration names no bound.

    Dynamic and long RoPE change every position once one sequence of a batch grows beyond the original length. Sequences
    of a batch would then disturb each other, so the original length is the bound.
    """
    text = config.get_text_config()
    bound = getattr(text, "max_position_embeddings", None)
    for rope in _rope_parameters(text):
        if rope.get("rope_type", rope.get("type")) in _REGIME_BOUND:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None) or bound
            bound = original if bound is None else min(bound, original)
    return None if bound is None else int(bound)


def _refusal(config: PretrainedConfig) -> str | None:
    text = config.get_text_config()
    if config.is_encoder_decoder or getattr(text, "add_cross_attention", False):
        return "has an encoder or cross-attention"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "transformers offers no causal language model for"
    if not _model_class(config)._supports_attention_backend:
        return "does not use transformers' attention interface (Mamba, RWKV, ALiBi and older code do not)"
    layers = set(getattr(text, "layer_types", None) or ()) - _SERVED_LAYERS
    if layers:
        return f"has layers without plain K/V ({', '.join(sorted(layers))})"
    if getattr(text, "use_bidirectional_attention", False) or getattr(text, "is_causal", True) is False:
        return "attends to tokens that follow"
    return None


def _model_class(config: PretrainedConfig) -> Any:
    known = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return known[0] if isinstance(known, tuple | list) else known


def _rope_parameters(text: PretrainedConfig) -> list[dict[str, Any]]:
    """Newer configurations may hold one set per kind of layer."""
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]
