"""Tokenizer, chat format and question wordings of the built-in model. Needs `tokenizers` alone, no torch.

A text is `<s>text</s>`. A chat is `<s>`, then each message behind the token of its role; an answer ends with `</s>`.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.builtin.corpus import Document, DocumentKind

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)
PAD_ID, BOS_ID, EOS_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL_TOKENS))

SYSTEM_PROMPT = "Answer from the documentation of Python."

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + (message['content'] or '') + eos_token }}"
    "{% elif message['role'] in ['system', 'developer'] %}{{ '<|system|>' + (message['content'] or '') }}"
    "{% else %}{{ '<|user|>' + (message['content'] or '') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_QUESTIONS = {
    DocumentKind.TOPIC: ("Tell me about {}.", "Explain {} in Python.", "What should I know about {}?"),
    DocumentKind.MODULE: ("What is the module {} for?", "What is {}?", "Describe the module {}."),
    DocumentKind.CLASS: ("What is {}?", "Explain the class {}.", "When would I use {}?"),
    DocumentKind.FUNCTION: ("What does {} do?", "How do I use {}?", "Explain {}."),
}


def question(document: Document) -> str:
    """What somebody would ask to be answered with this document; the same at every call."""
    wordings = _QUESTIONS[document.kind]
    return wordings[zlib.crc32(document.title.encode()) % len(wordings)].format(document.title)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text can be said, and no token is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A"], pair=[BOS, "$A", "$B:1"], special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, context_tokens: int) -> None:
    """As transformers' AutoTokenizer and `core.prompts` read it."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
    }
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
