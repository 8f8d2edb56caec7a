"""Turns a model's source into a `Generator`: configuration, support check, weights, tokenizer, proof, memory budget.

The proof is a probe: a few tokens go through the packed path, in pieces and side by side, and must give the logits of
the model's own forward pass. A model whose code does anything that the packed path does not know fails here, with a
sentence, and not in a user's answers.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.utils import cached_file

from core.errors import MillraceError, ModelFailure
from core.prompts import PromptCodec
from engine.generation import attention
from engine.generation.generator import Generator, ModelFacts
from engine.generation.kv import KvGrid
from engine.generation.probe import probe
from engine.generation.runner import Runner
from engine.generation.scheduler import Scheduler
from engine.generation.slots import SMALLEST_WIDTH, SlotPool
from engine.generation.support import check_support, context_bound

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KV_FRACTION_CUDA = 0.8  # of what is free once the weights are there; the rest is for activations
_KV_FRACTION_CPU = 0.25  # of what is free; a laptop has other work to do


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """dtype: `auto` or a key of torch's. kv_bytes: K/V memory of one model; 0 takes a part of what is free.

    num_models: how many models share the device, for the same purpose.
    """

    device: str
    dtype: str = "auto"
    num_slots: int = 32
    prefill_tokens: int = 512
    max_context_tokens: int = 8192
    kv_bytes: int = 0
    num_models: int = 1


def load_generator(name: str, source: str, options: LoadOptions) -> Generator:
    """Raises ModelFailure, or ConfigurationError where the tokenizer is missing."""
    started = time.monotonic()
    device = torch.device("cuda:0" if options.device == "cuda" else options.device)
    config = _load_config(name, source)
    check_support(name, config)
    codec = PromptCodec.load(_tokenizer_directory(name, source))
    model = _load_model(name, source, config, _dtype(options, config), device)
    generator = build_generator(name, model, codec, device, options)
    logger.info("%s is ready after %.1f s: %s", name, time.monotonic() - started, _describe(generator))
    return generator


def build_generator(
    name: str, model: Any, codec: PromptCodec, device: torch.device, options: LoadOptions
) -> Generator:
    """From a model in memory. Raises ModelFailure where the probe finds another result than the model's own."""
    attention.register()
    grid = KvGrid(2, SMALLEST_WIDTH)
    runner = Runner(model, grid, device)
    probe(name, model, runner, grid, device)
    weight_bytes = model.get_memory_footprint()
    pool = _pool(name, model.config, grid.bytes_per_token, device, options)
    grid.drop()
    facts = ModelFacts(
        name=name,
        context_tokens=min(pool.budget_tokens, _context_tokens(model.config, options)),
        vocabulary_size=model.get_input_embeddings().weight.shape[0],
        end_ids=_end_ids(model),
        weight_bytes=weight_bytes,
    )
    return Generator(runner, codec, facts, Scheduler(pool, options.prefill_tokens), pool)


def _load_config(name: str, source: str) -> PretrainedConfig:
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise ModelFailure(f"{name}: expected a model directory at {source}, found none")
    return _translated(name, source, lambda: AutoConfig.from_pretrained(_path(source)))


def _load_model(name: str, source: str, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> Any:
    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(_path(source), config=config, dtype=dtype).to(device).eval()

    return _translated(name, source, load)


def _translated[T](name: str, source: str, load: Any) -> Any:
    try:
        return load()
    except MillraceError:
        raise
    except Exception as error:  # loading a stranger's files raises anything
        raise ModelFailure(f"{name} cannot be loaded from {source}: {type(error).__name__}: {error}") from error
