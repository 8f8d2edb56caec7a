"""Models with random weights, for measuring speed where no trained model can be had.

Shapes of three sizes; a tokenizer that knows the words `w0`, `w1`, … so that a prompt of any number of tokens can be
written down. They never end an answer by themselves.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """kind: transformers' name of the architecture. sizes: of its configuration."""

    kind: str
    vocabulary: int
    sizes: dict[str, int]


DEFAULT_SHAPE = "115m"
SHAPES = {
    "10m": Shape(
        "llama",
        8_192,
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    DEFAULT_SHAPE: Shape(
        "llama",
        28_672,
        {
            "hidden_size": 576,
            "intermediate_size": 3072,
            "num_hidden_layers": 16,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    "600m": Shape(  # Qwen3-0.6B's
        "qwen3",
        151_936,
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
    ),
}
VOCABULARY = SHAPES[DEFAULT_SHAPE].vocabulary


def configuration(shape: str) -> Any:
    from transformers import AutoConfig  # the callers that only write prompts need none

    chosen = SHAPES[shape]
    return AutoConfig.for_model(
        chosen.kind,
        **chosen.sizes,
        vocab_size=chosen.vocabulary,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def random_model(seed: int = 0, shape: str = DEFAULT_SHAPE) -> Any:
    """The same weights for the same seed, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(configuration(shape))  # type: ignore[no-untyped-call]
    return model.to(torch.bfloat16).eval()


def save_random_model(directory: Path, seed: int = 0, shape: str = DEFAULT_SHAPE) -> Path:
    """A directory that an engine can load."""
    random_model(seed, shape).save_pretrained(directory)
    save_tokenizer(directory, SHAPES[shape].vocabulary)
    return directory


def save_tokenizer(directory: Path, vocabulary: int = VOCABULARY) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({}))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def token_ids_of(text: str) -> list[int]:
    """What the tokenizer would make of an answer of its model."""
    return [int(word.removeprefix("w")) for word in text.split()]
