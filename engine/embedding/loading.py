"""Turns a directory or Hub name into an `EmbeddingRuntime`."""

import logging
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from core.errors import MillraceError, ModelFailure
from engine.embedding.encoder import Encoder
from engine.embedding.runtime import BatchLimits, EmbeddingRuntime
from engine.models.linear import pack_linears
from engine.models.loading import LoadOptions, prepare_libraries

logger = logging.getLogger(__name__)

MAX_BATCH_INPUTS = 256
MAX_BATCH_TOKENS_CPU = 512  # of 64 inputs that wait, twice as many tokens would be one fifth padding
MAX_BATCH_TOKENS_GPU = 65_536


def load_embedder(name: str, source: str, options: LoadOptions) -> EmbeddingRuntime:
    """Raises ModelFailure."""
    started = time.monotonic()
    prepare_libraries(name, options)
    try:
        model = SentenceTransformer(
            str(Path(source).expanduser()), device=str(options.torch_device), model_kwargs={"dtype": _dtype(options)}
        ).eval()
        pack_linears(model)
        encoder = Encoder(name, model)
    except MillraceError:
        raise
    except Exception as error:  # loading somebody's files raises anything
        raise ModelFailure(f"{name} cannot be loaded from {source}: {type(error).__name__}: {error}") from error
    logger.info(
        "%s is ready after %.1f s: embeddings of %d dimensions, inputs of %d tokens at most",
        name, time.monotonic() - started, encoder.dimensions, encoder.max_tokens,
    )  # fmt: skip
    is_gpu = options.torch_device.type == "cuda"
    limits = BatchLimits(MAX_BATCH_TOKENS_GPU if is_gpu else MAX_BATCH_TOKENS_CPU, MAX_BATCH_INPUTS)
    return EmbeddingRuntime(name, encoder, limits)


def _dtype(options: LoadOptions) -> torch.dtype:
    """`auto` is float32 on a CPU, where embeddings then are the library's own, and float16 on a GPU."""
    if options.dtype != "auto":
        dtype: torch.dtype = getattr(torch, options.dtype)
        return dtype
    return torch.float16 if options.torch_device.type == "cuda" else torch.float32
