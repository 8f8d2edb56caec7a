"""Tiny models with random weights for tests, in memory and as directories that the engine can load.

Their weights are drawn so wide that greedy answers wander through the vocabulary instead of repeating one token: an
answer that is right by accident would be of no use.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

VOCABULARY = 320
END_ID = 1

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "eos_token_id": END_ID,
    "bos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    "mistral": lambda: MistralConfig(**SHAPE, head_dim=16, sliding_window=11),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=16, sliding_window=11, attn_logit_softcapping=20.0),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=11, query_pre_attn_scalar=16),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**SHAPE, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=32, first_k_dense_replace=1,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=512, initializer_range=0.3,
        tie_word_embeddings=False, eos_token_id=END_ID, bos_token_id=None,
    ),
}  # fmt: skip

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.update(changes)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    return model.eval()


def number_tokenizer() -> Tokenizer:
    """Token n is the word `n`: what the model answered can be read off the text."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE over a little text: 2 special tokens, the 256 bytes, and a few merges, `VOCABULARY` in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the mill race feeds the wheel and the wheel turns the stone that grinds the grain into flour for the bread"
    tokenizer.train_from_iterator([text, text.title(), *text.split()] * 4, trainer)
    return tokenizer


def save_tiny_model(directory: Path, kind: str = "llama", **changes: Any) -> Path:
    """A directory as `save_pretrained` leaves it, tokenizer and chat template included."""
    tiny_model(kind, **changes).save_pretrained(directory)
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "pad_token": "<pad>"}))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory
