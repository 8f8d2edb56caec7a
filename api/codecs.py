"""The tokenizers of the models that this machine can read: local directories, and the local cache of the Hub.

It never asks the network. Of a model that it cannot read it knows nothing, and the engine decides.
"""

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from core.errors import ConfigurationError
from core.prompts import PromptCodec

logger = logging.getLogger(__name__)

NUM_KEPT = 8
LOOK_AGAIN_SECONDS = 30.0
TOKENIZER_FILE = "tokenizer.json"
_BOUND_FIELDS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """context_tokens: prompt and answer together, at most; the engine may have room for fewer."""

    codec: PromptCodec
    context_tokens: int


class Codecs:
    """sources: model name -> directory or name on the Hub. Safe to share between threads; reading a tokenizer takes up
    to a second, once."""

    def __init__(
        self, sources: Mapping[str, str], max_context_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = sources
        self._max_context_tokens = max_context_tokens
        self._clock = clock
        self._known: OrderedDict[str, KnownModel] = OrderedDict()
        self._failed_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def counts(self, model: str) -> bool:
        """Whether it is one of those whose prompts may be counted here; whether it can be read shows when it is."""
        return model in self._sources

    def find(self, model: str) -> KnownModel | None:
        """None where the model cannot be read here. It is looked for again after a while."""
        source = self._sources.get(model)
        if source is None:
            return None
        with self._lock:
            known = self._known.get(model)
            if known is not None:
                self._known.move_to_end(model)
                return known
            if self._clock() - self._failed_at.get(model, float("-inf")) < LOOK_AGAIN_SECONDS:
                return None
            known = self._read(model, source)
            if known is None:
                self._failed_at[model] = self._clock()
                return None
            self._known[model] = known
            if len(self._known) > NUM_KEPT:
                self._known.popitem(last=False)
            return known

    def _read(self, model: str, source: str) -> KnownModel | None:
        directory = find_directory(source)
        if directory is None:
            return None
        try:
            bound = _context_bound(directory)
            return KnownModel(PromptCodec.load(directory), int(min(self._max_context_tokens, bound)))
        except (ConfigurationError, OSError, ValueError) as error:
            logger.warning("prompts for %s are not counted before they are queued: %s", model, error)
            return None


def find_directory(source: str) -> Path | None:
    """Where the tokenizer of a directory, or of a model in the Hub's local cache, lies; None where it does not."""
    directory = Path(source).expanduser()
    if (directory / TOKENIZER_FILE).is_file():
        return directory
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or ":" in source:
        return None
    cached = try_to_load_from_cache(source, TOKENIZER_FILE)
    return Path(cached).parent if isinstance(cached, str) else None


def _context_bound(directory: Path) -> float:
    """Tokens that the configuration allows; without end where it names no bound."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    inner = config.get("text_config") or {}
    bounds = [inner.get(name, config.get(name)) for name in _BOUND_FIELDS]
    return min((bound for bound in bounds if isinstance(bound, int)), default=float("inf"))
