"""The built-in model `millrace/tiny`: trained on first use, on the documentation that comes with Python itself.

It is there so that everything can be tried without a download, and so that quality can be measured: it has learned
something, if not much. This module knows only which files make it complete; it needs no torch.
"""

import json
from pathlib import Path
from typing import Any

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "heldout.txt",
    "training.json",
)


def is_complete(directory: Path) -> bool:
    """A directory appears under its name only when it is whole, so this fails only where somebody took files away."""
    return all((directory / name).is_file() for name in MODEL_FILES)


def read_training(directory: Path) -> dict[str, Any]:
    """The figures of a finished model: parameters, steps, seconds, perplexity, ratio, bits_per_byte and so on."""
    return dict(json.loads((directory / "training.json").read_text(encoding="utf-8")))
