"""Tiny models that rotate neighbours in a head, where the kernels rotate halves."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, CohereConfig, Ernie4_5Config, PretrainedConfig

from tests.engine_models import SHAPE

INTERLEAVED: dict[str, type[PretrainedConfig]] = {"cohere": CohereConfig, "ernie4_5": Ernie4_5Config}


def interleaved_model(kind: str) -> Any:
    torch.manual_seed(0)
    config = INTERLEAVED[kind](**{**SHAPE, "hidden_size": 64})
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    return model.eval()
