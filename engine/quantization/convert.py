"""Quantizes a model directory into another one, which appears whole or not at all, and compares the two models on held-
out text. The figures lie in the directory too, so that whoever finds it complete need not make it again."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from core.errors import MillraceError, ModelFailure
from core.prompts import PromptCodec
from engine.builtin.corpus import split, topics, unique
from engine.builtin.publish import appearing_whole, locked
from engine.quantization.agreement import Predictions, compare, predictions

logger = logging.getLogger(__name__)

FIGURES_FILE = "millrace-quantization.json"
LOCK_SECONDS = 3600.0
NUM_TOKENS = 1024
NF4_BLOCK = 64  # weights that share a scale
CPU_TILE = 32  # rows that the product on a CPU takes at once
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.model",
)  # fmt: skip

Report = Callable[[float, str], None]


def quantize(source: str, method: str, out: Path, report: Report) -> dict[str, Any]:
    """method: `nf4` or `int8`. Returns the figures. Does nothing where `out` is complete. Raises ModelFailure."""
    with locked(out, LOCK_SECONDS, lambda: report(0.0, "another process makes it")):
        if (out / FIGURES_FILE).exists():
            return read_figures(out)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8 says the same of every product
        with appearing_whole(out) as partial:
            figures = _make(source, method, partial, report)
            (partial / FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    report(1.0, "done")
    return figures


def read_figures(directory: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((directory / FIGURES_FILE).read_text(encoding="utf-8"))
    return figures


def _make(source: str, method: str, partial: Path, report: Report) -> dict[str, Any]:
    path = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    report(0.05, "copying the tokenizer")
    _copy_tokenizer(path, partial)
    stream = _held_out_tokens(partial)
    report(0.1, "loading the model")
    original = _load(path, None)
    weights_before = original.get_memory_footprint()
    report(0.3, "measuring the model")
    before = predictions(original, stream)
    skipped = _unfit(original) if method == "nf4" else []
    del original
    report(0.5, f"quantizing to {method}")
    small = _load(path, _config(method, skipped))
    weights_after = small.get_memory_footprint()
    report(0.7, "writing")
    small.save_pretrained(partial)  # before it runs, which rearranges its weights for the CPU
    report(0.8, "measuring the quantized model")
    figures = _figures(before, predictions(small, stream))
    return {
        "method": method,
        "weight_bytes_before": weights_before,
        "weight_bytes_after": weights_after,
        "bytes_after": sum(file.stat().st_size for file in partial.iterdir()),
        **figures,
    }


def _figures(before: Predictions, after: Predictions) -> dict[str, Any]:
    agreement = compare(before, after)
    return {
        "num_tokens": agreement.num_tokens,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "same_first_choice_fraction": agreement.same_first_choice_fraction,
        "kl_divergence_nats": agreement.kl_divergence_nats,
    }


def _unfit(model: Any) -> list[str]:
    """Names of the layers that bitsandbytes cannot run on a CPU, because no whole number of blocks makes a row, or of
    tiles the rows. They stay as they are."""
    linears = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name, module in linears if module.in_features % NF4_BLOCK or module.out_features % CPU_TILE]


def _config(method: str, skipped: list[str]) -> BitsAndBytesConfig:
    if method == "int8":
        # Outliers are found per batch, so that an answer would depend on what runs beside it, which the engine refuses.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*skipped, "lm_head"] if skipped else None,
    )


def _load(path: str, quantization: BitsAndBytesConfig | None) -> Any:
    """On the CPU, so that the engine keeps its device. bitsandbytes quantizes while it loads."""
    extra = {} if quantization is None else {"quantization_config": quantization, "device_map": "cpu"}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **extra)
    except MillraceError:
        raise
    except Exception as error:  # loading somebody's files raises anything
        raise ModelFailure(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return model.eval()


def _copy_tokenizer(path: str, target: Path) -> None:
    for name in _TOKENIZER_FILES:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, target / name)
    if not (target / "tokenizer.json").exists():
        raise ModelFailure(f"expected {path} to have a tokenizer.json, found none")


def _held_out_tokens(directory: Path) -> torch.Tensor:
    """Of documents that the built-in model never saw, and other models hardly as text alone: (tokens,) int64."""
    codec = PromptCodec.load(directory)
    token_ids: list[int] = []
    for document in split(unique(topics())).held_out:
        token_ids += codec.encode_text(document.text)
        if len(token_ids) > NUM_TOKENS:
            break
    return torch.tensor(token_ids[: NUM_TOKENS + 1])
