"""Turns a model's source into a `Generator`: configuration, support check, tokenizer, weights, proof, memory budget."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_accelerate_available

from core.errors import MillraceError, ModelFailure
from core.prompts import PromptCodec
from engine.generation import grid_attention
from engine.generation.answers import Answers, ModelFacts
from engine.generation.execution import StepRunner
from engine.generation.generator import Generator
from engine.generation.packing import pack
from engine.generation.runner import Runner
from engine.generation.scheduler import Piece, Scheduler
from engine.kv.grid import KvGrid
from engine.kv.pool import KvPool
from engine.kv.slots import SMALLEST_WIDTH, SlotPool
from engine.models.layers.decoder import run_layers_as_one
from engine.models.layers.substitution import use_native_layers
from engine.models.linear import pack_linears
from engine.models.memory import kv_budget_bytes
from engine.models.paging import PagingPlan, page_model
from engine.models.probe import probe, reference
from engine.models.support import check_support, context_bound
from engine.native.allocator import keep_freed_memory
from engine.native.kernels import begin_loading, load_kernels

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """dtype: `auto` or a name of torch's. kv_bytes: K/V memory of one model; 0 takes a part of what is free.

    num_models: how many models share the device, and so what is free. num_threads: CPU threads; 0 leaves it to torch.
    native: whether kernels made for the machine may be used, in C on a CPU, Triton's on a GPU.
    prefix_reuse: whether K/V of finished sequences are kept, and shared by those of a scope that begin alike.
    kv: `rows` of a grid, `pages`, or `auto`, which is pages on a GPU and rows on a CPU.
    graphs: whether decode steps on a GPU's pages may be CUDA graphs. other_weight_bytes: of the other models that are
    to share the device, loaded or not.
    num_ahead: steps launched on pages before the last one's tokens are read, 0 or 1; None is 1 on a GPU.
    """

    device: str
    dtype: str = "auto"
    num_slots: int = 32
    prefill_tokens: int = 512
    max_context_tokens: int = 8192
    kv_bytes: int = 0
    num_models: int = 1
    num_threads: int = 0
    native: bool = True
    prefix_reuse: bool = True
    kv: str = "auto"
    num_ahead: int | None = None
    graphs: bool = True
    other_weight_bytes: int = 0

    @property
    def has_pages(self) -> bool:
        return self.kv == "pages" or (self.kv == "auto" and self.device == "cuda")

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda:0" if self.device == "cuda" else self.device)


def load_generator(name: str, source: str, options: LoadOptions) -> Generator:
    """Raises ModelFailure, or ConfigurationError where the tokenizer is missing."""
    started = time.monotonic()
    prepare_libraries(name, options)
    if options.native and options.device == "cpu":
        begin_loading()
    path = _path(name, source)
    config = _translated(name, source, lambda: AutoConfig.from_pretrained(path))
    check_support(name, config)
    codec = PromptCodec.load(_tokenizer_directory(name, path))
    model = _translated(name, source, lambda: _load_model(path, config, options))
    generator = build_generator(name, model, codec, options)
    logger.info(
        "%s is ready after %.1f s: %s, %.0f MB of weights, context of %d tokens",
        name, time.monotonic() - started, model.dtype, generator.weight_bytes / 1e6, generator.context_tokens,
    )  # fmt: skip
    return generator


def build_generator(name: str, model: Any, codec: PromptCodec, options: LoadOptions) -> Generator:
    """From a model in memory. Raises ModelFailure where the probe finds another result than the model's own."""
    weight_bytes = model.get_memory_footprint()
    own = reference(name, model)
    if options.device == "cpu":
        keep_freed_memory()
    kernels = load_kernels() if options.native and options.device == "cpu" else None
    if kernels is not None:
        use_native_layers(name, model, kernels)
    pack_linears(model)  # what is left
    place = _on_pages if options.has_pages else _on_rows
    runner, pool = place(name, model, options, own)
    facts = ModelFacts(
        name=name,
        context_tokens=pool.context_tokens,
        vocabulary_size=model.get_input_embeddings().weight.shape[0],
        end_ids=_end_ids(model),
        weight_bytes=weight_bytes,
    )
    answers = Answers(codec, facts, time.monotonic)
    scheduler = Scheduler(pool, options.prefill_tokens, shares_passes=not options.has_pages)
    return Generator(runner, answers, facts, scheduler, pool)


def _on_rows(name: str, model: Any, options: LoadOptions, own: list[Tensor]) -> tuple[StepRunner, KvPool]:
    device = options.torch_device
    grid_attention.register()
    kernels = load_kernels() if options.native and options.device == "cpu" else None
    grid = KvGrid((2, SMALLEST_WIDTH), kernels)
    runner = Runner(model, grid, device)

    def forward(pieces: list[Piece]) -> Tensor:
        return runner.forward(pack(pieces, grid, device))

    probe(name, model, grid_attention.ATTENTION_NAME, forward, own)
    if kernels is not None:
        run_layers_as_one(name, model, kernels, forward)
    pool = _pool(name, model.config, grid.bytes_per_token, options)
    grid.drop()
    return runner, pool


def _on_pages(name: str, model: Any, options: LoadOptions, own: list[Tensor]) -> tuple[StepRunner, KvPool]:
    plan = PagingPlan(
        device=options.torch_device,
        num_slots=options.num_slots,
        context_tokens=_wanted_context(model.config, options),
        prefill_tokens=options.prefill_tokens,
        kv_bytes=options.kv_bytes,
        num_models=options.num_models,
        prefix_reuse=options.prefix_reuse,
        num_ahead=int(options.device == "cuda") if options.num_ahead is None else options.num_ahead,
        native=options.native,
        graphs=options.graphs,
        other_weight_bytes=options.other_weight_bytes,
    )
    return page_model(name, model, plan, own)


def prepare_libraries(name: str, options: LoadOptions) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ModelFailure(f"{name}: expected a CUDA device, found none; start the engine with --device cpu")
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the log is read later, by people who look for something else


def _path(name: str, source: str) -> str:
    """A directory as it is, expanded; anything else is a name on the Hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if source.startswith(("/", ".", "~")):
        raise ModelFailure(f"{name}: expected a model directory at {source}, found none")
    return source


def _load_model(path: str, config: PretrainedConfig, options: LoadOptions) -> Any:
    placement = {"device_map": options.torch_device} if is_accelerate_available() else {}
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=_dtype(config, options), attn_implementation="eager", **placement
    )
    return (model if placement else model.to(options.torch_device)).eval()


def _dtype(config: PretrainedConfig, options: LoadOptions) -> torch.dtype:
    """`auto` is what the weights were saved in, but for float32 on a GPU and float16 on a CPU, which are slow there."""
    if options.dtype != "auto":
        return _DTYPES[options.dtype]
    saved = getattr(config.get_text_config(), "dtype", None) or torch.float32
    saved = getattr(torch, saved) if isinstance(saved, str) else saved
    slow = torch.float32 if options.device == "cuda" else torch.float16
    return torch.bfloat16 if saved == slow else saved


def _tokenizer_directory(name: str, path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)

    def fetch() -> list[str | None]:
        return [cached_file(path, file, _raise_exceptions_for_missing_entries=False) for file in _TOKENIZER_FILES]

    tokenizer_file = _translated(name, path, fetch)[0]
    if tokenizer_file is None:
        raise ModelFailure(f"{name}: expected {path} to have a tokenizer.json, found none")
    return Path(tokenizer_file).parent


def _pool(name: str, config: PretrainedConfig, bytes_per_token: int, options: LoadOptions) -> SlotPool:
    wanted = _wanted_context(config, options)
    budget_bytes = options.kv_bytes or kv_budget_bytes(options.torch_device, options.num_models)
    most_tokens = options.num_slots * max(wanted, SMALLEST_WIDTH)
    most_tokens *= 2 if options.prefix_reuse else 1  # known prefixes may take as much as the largest grid
    budget_tokens = min(budget_bytes // bytes_per_token, most_tokens)
    if budget_tokens < 1:
        raise ModelFailure(f"{name}: {budget_bytes} bytes for K/V do not hold one token of {bytes_per_token} bytes")
    if budget_tokens < wanted:
        logger.warning(
            "%s: memory for K/V ends at %d tokens, so the context is that and not %d", name, budget_tokens, wanted
        )
    context_tokens = min(wanted, budget_tokens)
    return SlotPool(options.num_slots, budget_tokens, context_tokens, reuses_prefixes=options.prefix_reuse)


def _wanted_context(config: PretrainedConfig, options: LoadOptions) -> int:
    bound = context_bound(config)
    return options.max_context_tokens if bound is None else min(bound, options.max_context_tokens)


def _end_ids(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id if model.can_generate() else None
    ends = model.config.get_text_config().eos_token_id if ends is None else ends
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def _translated(name: str, source: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except MillraceError:
        raise
    except Exception as error:  # loading somebody's files raises anything
        raise ModelFailure(f"{name} cannot be loaded from {source}: {type(error).__name__}: {error}") from error
