"""Tiny models that rotate neighbours in a head, where the kernels rotate halves."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, CohereConfig, Ernie4_5Config, PretrainedConfig

_SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
INTERLEAVED: dict[str, type[PretrainedConfig]] = {"cohere": CohereConfig, "ernie4_5": Ernie4_5Config}


def interleaved_model(kind: str) -> Any:
    torch.manual_seed(0)
    config = INTERLEAVED[kind](**_SHAPE)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    return model.eval()
