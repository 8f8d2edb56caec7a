"""Models of known shapes with random weights: what a step costs depends on the shape and not on what the weights say.

Knows no speeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from core.prompts import PromptCodec

_NO_SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # so wide that greedy answers wander through the vocabulary
    "tie_word_embeddings": False,
    **_NO_SPECIAL_TOKENS,
}
PARITY: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_TINY),
    "qwen3": lambda: Qwen3Config(**_TINY),
    "gemma3": lambda: Gemma3TextConfig(**_TINY, sliding_window=24, query_pre_attn_scalar=16),
    "gpt2": lambda: GPT2Config(
        vocab_size=512,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=2048,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def tiny() -> PretrainedConfig:
    return PARITY["qwen3"]()


def qwen3_600m() -> PretrainedConfig:
    """Qwen3-0.6B."""
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        **_NO_SPECIAL_TOKENS,
    )


def llama_8b() -> PretrainedConfig:
    """Llama-3.1-8B."""
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        **_NO_SPECIAL_TOKENS,
    )


def build(config: PretrainedConfig, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """On the device at once: the larger ones would take minutes on a CPU."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")  # type: ignore[no-untyped-call]
    return model.eval()


def number_codec(config: PretrainedConfig) -> PromptCodec:
    """Token n is the word `n`."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(config.vocab_size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PromptCodec(tokenizer, None)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a decode step cannot avoid to read: all weights once, and the K/V of every token before."""

    weight_bytes: int
    kv_bytes_per_token: int

    def step_bytes(self, num_live_tokens: float) -> float:
        return self.weight_bytes + self.kv_bytes_per_token * num_live_tokens


def traffic(model: Any) -> Traffic:
    """For models whose every layer has K/V of the same shape."""
    config = model.config
    weights = {id(weight): weight.numel() * weight.element_size() for weight in model.parameters()}
    if not config.tie_word_embeddings:
        del weights[id(model.get_input_embeddings().weight)]  # of which a step reads a line per sequence
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    line = 2 * config.num_key_value_heads * head_dim * model.dtype.itemsize
    return Traffic(sum(weights.values()), config.num_hidden_layers * line)
