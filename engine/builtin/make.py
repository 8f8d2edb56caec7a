"""Makes the directory of the built-in model: reads the corpus, trains tokenizer and weights, measures, saves.

Everything but the last step happens in memory or in a hidden sibling; the directory appears whole.
"""

import json
import logging
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from core.errors import ConfigurationError
from core.prompts import PromptCodec
from engine.builtin import is_complete, read_training
from engine.builtin.batches import Batches, TrainingText
from engine.builtin.corpus import Corpus, load_corpus
from engine.builtin.evaluate import (
    DEFAULT_WINDOW_TOKENS,
    Quality,
    join_documents,
    measure,
    model_stream,
    unigram_perplexity,
)
from engine.builtin.publish import appearing_whole, locked
from engine.builtin.recipe import Recipe
from engine.builtin.tokenizer import EOS_ID, save_tokenizer, train_tokenizer
from engine.builtin.training import Run, new_model, train

Report = Callable[[float, str], None]
"""Gets the part of the whole that is done, 0 to 1, and a line for people."""

_CLOSING_SECONDS = 6.0  # kept for measuring and saving
_PATIENCE = 3.0  # times the limit, until a process that trains the same model counts as stuck
_MEASURED_WINDOWS = (DEFAULT_WINDOW_TOKENS, 1024)
_TRAINING_FROM, _TRAINING_TO = 0.12, 0.93

logger = logging.getLogger(__name__)


def make_builtin_model(directory: Path, recipe: Recipe, report: Report, began: float) -> dict[str, Any]:
    """Gives what `training.json` says. Does nothing where the model is there already, also by another process's work.

    began: when the caller's time began, on `time.monotonic`; `recipe.seconds_limit` counts from there.
    """
    directory = directory.absolute()
    timeout_seconds = _PATIENCE * recipe.seconds_limit
    with locked(directory, timeout_seconds, lambda: report(0.0, "another process trains it; waiting")) as has_waited:
        if not is_complete(directory):
            with appearing_whole(directory) as partial:
                _fill(partial, recipe, report, time.monotonic() if has_waited else began)
    return read_training(directory)


def _fill(directory: Path, recipe: Recipe, report: Report, began: float) -> None:
    torch.set_num_threads(min(recipe.num_threads, torch.get_num_threads()))
    report(0.0, "reading the documentation of Python")
    corpus = load_corpus()
    report(0.08, f"training the tokenizer on {len(corpus.training)} documents")
    tokenizer = train_tokenizer((document.text for document in corpus.training), recipe.shape.vocab_size)
    text = TrainingText(tokenizer, corpus.training, recipe.chat_fraction)
    model = new_model(recipe.shape, recipe.seed)
    seconds = recipe.seconds_limit - _CLOSING_SECONDS - (time.monotonic() - began)
    run = train(model, Batches(text, recipe), recipe, seconds, _within(report, _TRAINING_FROM, _TRAINING_TO))
    report(_TRAINING_TO, "measuring and saving")
    _save(directory, model, tokenizer, corpus, recipe)
    figures = _figures(directory, model, run, text.token_counts(recipe.shape.vocab_size), began)
    logger.info("%d steps, %.0f s, held-out perplexity %.1f", run.num_steps, figures["seconds"], figures["perplexity"])
    (directory / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _within(report: Report, begin: float, end: float) -> Report:
    return lambda fraction, detail: report(begin + (end - begin) * fraction, detail)


def _save(directory: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, corpus: Corpus, recipe: Recipe) -> None:
    try:
        disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is enough
        model.save_pretrained(directory)
    except SafetensorError as error:  # a full disk comes in this wrapping
        raise ConfigurationError(f"cannot write the weights to {directory}: {error}") from error
    shutil.copymode(directory / "config.json", directory / "model.safetensors")  # written for the owner alone
    save_tokenizer(tokenizer, directory, recipe.shape.context_tokens)
    held_out = join_documents(document.text for document in corpus.held_out)
    (directory / "heldout.txt").write_text(held_out, encoding="utf-8")


def _figures(directory: Path, model: LlamaForCausalLM, run: Run, token_counts: Tensor, began: float) -> dict[str, Any]:
    """Measured on what was saved, except for the weights, which are those in memory."""
    text = (directory / "heldout.txt").read_text(encoding="utf-8")
    stream = model_stream(PromptCodec.load(directory), text, [EOS_ID])
    by_window = {window: measure(model, stream, text, window) for window in _MEASURED_WINDOWS}
    quality, unigram = by_window[DEFAULT_WINDOW_TOKENS], unigram_perplexity(token_counts, stream)
    return {
        "parameters": model.num_parameters(),
        "steps": run.num_steps,
        "training_tokens": run.num_tokens,
        "seconds": round(time.monotonic() - began, 1),
        "training_seconds": round(run.seconds, 1),
        **_rounded(quality),
        "perplexity_by_window": {window: round(found.perplexity, 2) for window, found in by_window.items()},
        "unigram_perplexity": round(unigram, 2),
        "ratio": round(quality.perplexity / unigram, 4),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
    }


def _rounded(quality: Quality) -> dict[str, float | int]:
    return {name: round(value, 4) for name, value in asdict(quality).items()}
