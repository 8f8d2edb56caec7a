"""Whether a model's source is an embedding model, told from its files before anything of it is loaded."""

import json
from pathlib import Path

from core.protocol import EMBEDDER, GENERATOR

_GENERATES = ("CausalLM", "LMHeadModel", "ConditionalGeneration")


def holds_embedder(source: str) -> bool:
    """A directory, or a name on the Hub, of which at most a small file is fetched."""
    directory = Path(source).expanduser()
    if directory.is_dir() or source.startswith(("/", ".", "~")):
        return is_embedder(directory)
    from transformers.utils.hub import cached_file  # torch; seconds

    return cached_file(source, "modules.json", _raise_exceptions_for_missing_entries=False) is not None


def told_kind(source: str) -> str:
    """What the files of a directory tell before it is loaded; empty where there are none to look at."""
    directory = Path(source).expanduser()
    if not (directory / "config.json").is_file() and not (directory / "modules.json").is_file():
        return ""
    return EMBEDDER if is_embedder(directory) else GENERATOR


def is_embedder(directory: Path) -> bool:
    """A sentence-transformers directory, or one of an encoder that generates nothing, such as `BertModel`."""
    if (directory / "modules.json").is_file():
        return True
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads it says what is wrong with it
        return False
    names = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(names, list) and names != [] and not any(str(name).endswith(_GENERATES) for name in names)
