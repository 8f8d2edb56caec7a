"""A model of 115 M parameters with random weights, for measuring speed where no trained model can be had.

Its shape is a small Llama's; its tokenizer knows the words `w0`, `w1`, … so that a prompt of any number of tokens can
be written down. It never ends an answer by itself.
"""

import json
from pathlib import Path
from typing import Any

VOCABULARY = 28_672
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 576,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def random_model(seed: int = 0) -> Any:
    """The same weights for the same seed, in bfloat16."""
    import torch  # the callers that only write prompts need none
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(**_SHAPE))
    return model.to(torch.bfloat16).eval()


def save_random_model(directory: Path, seed: int = 0) -> Path:
    """A directory that the engine can load."""
    random_model(seed).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({}))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
