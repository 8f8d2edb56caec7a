"""What a model may ask of an attention function of this engine, on rows or on pages; the rest is refused by name.

Honoured are `scaling`, `sliding_window` and `softcap`. An argument that could change the result and that nobody knows
would be answered wrongly in silence; the probe at load time meets the refusal first. Knows no K/V.
"""

from typing import Any

from torch import Tensor, nn

from core.errors import ModelFailure

WITHOUT_EFFECT = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
     "past_key_values", "cache_position", "is_causal", "position_embeddings", "logits_to_keep"}
)  # fmt: skip


def layer_index(module: nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]  # every attention module of transformers has one


def check_arguments(module: nn.Module, mask: Tensor | None, packed: object | None, kwargs: dict[str, Any]) -> None:
    """packed: the step as the runner gave it to the model. Raises ModelFailure."""
    name = type(module).__name__
    if packed is None:
        raise ModelFailure(
            f"{name} keeps keyword arguments from its attention function, so this engine cannot serve it"
        )
    if mask is not None:
        raise ModelFailure(f"{name} brings an attention mask of its own, which this engine would have to ignore")
    unknown = [key for key in kwargs.keys() - WITHOUT_EFFECT if kwargs[key] is not None]
    if unknown:
        raise ModelFailure(f"{name} asks for {', '.join(sorted(unknown))}, which this engine's attention does not know")


def check_window(module: nn.Module, layer: int, window: int | None) -> None:
    """Raises ModelFailure where the configuration tells of a sliding window and the call does not."""
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    if window is None and kinds and kinds[layer] == "sliding_attention":
        raise ModelFailure(
            f"{type(module).__name__} does not tell its attention function the sliding window of layer {layer}"
        )
