"""Which models are refused by name, and the proof that those served give their own logits."""

from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    RwkvConfig,
    T5Config,
    ViTConfig,
)

from core.errors import ModelFailure
from engine.models.support import check_support, context_bound
from tests.engine_harness import Harness
from tests.engine_models import CONFIGS, tiny_model


def bidirectional() -> PretrainedConfig:
    config = LlamaConfig()
    config.update({"is_causal": False})
    return config


@pytest.mark.parametrize("kind", CONFIGS)
def test_decoders_with_plain_attention_are_served(kind: str) -> None:
    check_support(kind, CONFIGS[kind]())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(), "attention interface"),
        (RwkvConfig(), "attention interface"),
        (BloomConfig(), "attention interface"),
        (Llama4TextConfig(), "chunked_attention"),
        (T5Config(), "encoder"),
        (ViTConfig(), "no causal language model"),
        (bidirectional(), "tokens that follow"),
    ],
)
def test_others_are_refused_by_name_with_the_reason(config: PretrainedConfig, reason: str) -> None:
    with pytest.raises(ModelFailure, match=rf"^mine is a '{config.model_type}' model, .*{reason}.*served are"):
        check_support("mine", config)


@pytest.mark.parametrize(
    ("rope", "bound"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 4_096),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 4_096),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 2_048}, 2_048),
    ],
)
def test_the_context_ends_where_positions_would_begin_to_disturb_each_other(rope: dict[str, Any], bound: int) -> None:
    assert context_bound(LlamaConfig(max_position_embeddings=4_096, rope_parameters=rope)) == bound


def test_a_model_whose_attention_looks_elsewhere_is_refused() -> None:
    # Given a model that mixes tokens outside its attention function, as a convolution or a recurrence would
    model = tiny_model("llama")
    model.model.layers[1].register_forward_hook(lambda _module, _arguments, output: output + output.roll(1, dims=1))
    # When it is loaded, then the proof fails
    with pytest.raises(ModelFailure, match="gives other logits in packed form"):
        Harness(model)


def test_a_model_that_asks_its_attention_for_more_is_refused_by_the_name_of_it() -> None:
    # Given a model that hands attention sinks to its attention function
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _module, arguments, kwargs: (arguments, {**kwargs, "s_aux": torch.zeros(4)}), with_kwargs=True
        )
    # When it is loaded, then the sentence names them
    with pytest.raises(ModelFailure, match="s_aux"):
        Harness(model)


def test_a_model_that_hides_its_sliding_window_is_refused() -> None:
    # Given layers that slide but do not say so to the attention function
    model = tiny_model("gemma3")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    # When it is loaded, then it is refused
    with pytest.raises(ModelFailure, match="sliding window of layer 0"):
        Harness(model)
