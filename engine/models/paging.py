"""Brings a model's K/V into pages: kernels, proof, number of pages, CUDA graphs. Knows no request.

Graphs are made only when the pages have their final places, and the proof is then repeated through them: through the
smallest, through one with padding, and through the largest.
"""

import importlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from core.errors import ModelFailure
from engine.gpu.allocator import allocator
from engine.kv.pages import PagePool
from engine.models.layers.substitution import use_native_layers
from engine.models.memory import kv_budget_bytes
from engine.models.probe import probe
from engine.native.kernels import Kernels
from engine.paged import attention
from engine.paged.attention import ATTENTION_NAME, PagedKernels
from engine.paged.reference import ReferenceKernels
from engine.paged.runner import Limits, PagedRunner
from engine.paged.sizing import Memory, workspace_bytes
from engine.paged.storage import PAGE_SIZE, PagedStorage

logger = logging.getLogger(__name__)

_PROBE_SEQUENCES = 2


@dataclass(frozen=True, slots=True)
class PagingPlan:
    """context_tokens: wanted of a sequence; memory may leave less. kv_bytes: 0 is what is free. num_ahead: as in
    StepRunner. native: whether a GPU's own kernels may take the place of norms and rotations. graphs: whether a GPU's
    decode steps may be CUDA graphs. other_weight_bytes: of the other models that are to share the device."""

    device: torch.device
    num_slots: int
    context_tokens: int
    prefill_tokens: int
    kv_bytes: int
    num_models: int
    prefix_reuse: bool
    num_ahead: int
    native: bool
    graphs: bool
    other_weight_bytes: int


def page_model(name: str, model: Any, plan: PagingPlan, own: list[Tensor]) -> tuple[PagedRunner, PagePool]:
    """own: the logits that the model had when it was loaded. Raises ModelFailure where the probe finds others, or where
    memory does not do."""
    attention.register()
    if plan.native and plan.device.type == "cuda":
        elementwise = _from_triton("engine.gpu.elementwise").GpuElementwise()
        use_native_layers(name, model, cast("Kernels", elementwise))  # of which it offers what layers ask for
    kernels = _kernels(plan.device)
    storage = PagedStorage(_PROBE_SEQUENCES, plan.device)
    first = PagedRunner(model, storage, kernels, Limits(_PROBE_SEQUENCES, PAGE_SIZE, 0))
    probe(name, model, ATTENTION_NAME, first.forward, own)
    num_pages, context_tokens = _room(name, _budget_bytes(model, kernels, storage, plan), storage, plan)
    storage.allocate(num_pages)
    num_rows = max(plan.num_slots, _PROBE_SEQUENCES)
    runner = PagedRunner(model, storage, kernels, Limits(num_rows, context_tokens, plan.num_ahead))
    if plan.device.type == "cuda":
        if plan.graphs:
            _capture(name, runner)
        for least_rows in (1, _PROBE_SEQUENCES, num_rows):
            probe(name, model, ATTENTION_NAME, partial(runner.forward, least_rows=least_rows), own)
    pool = PagePool(plan.num_slots, num_pages, PAGE_SIZE, context_tokens, reuses_prefixes=plan.prefix_reuse)
    return runner, pool


def _capture(name: str, runner: PagedRunner) -> None:
    """A capture that failed spoils the process for others, which then run without graphs; the next engine must be told
    not to try."""
    if allocator.is_broken:
        logger.warning("%s decodes without CUDA graphs: making them failed before; restart the engine", name)
        return
    try:
        runner.capture()
    except Exception as error:  # a model's code, a kernel's compiler and CUDA raise what they like
        cause = error.__context__ or error  # what ended the capture, where its end then failed
        raise ModelFailure(
            f"{name}: its decode steps do not become CUDA graphs ({type(cause).__name__}: {cause}); start its engine "
            "with --no-graphs (MILLRACE_ENGINE_GRAPHS=off), or with fewer slots if memory is short"
        ) from error


def _kernels(device: torch.device) -> PagedKernels:
    if device.type != "cuda":
        return ReferenceKernels()
    kernels: PagedKernels = _from_triton("engine.paged.triton_attention").TritonKernels()
    return kernels


def _from_triton(module: str) -> Any:
    """By name: Triton is there only with torch's builds for CUDA."""
    return importlib.import_module(module)


def _budget_bytes(model: Any, kernels: PagedKernels, storage: PagedStorage, plan: PagingPlan) -> int:
    if plan.kv_bytes:
        return plan.kv_bytes
    if plan.device.type != "cuda":
        return kv_budget_bytes(plan.device, plan.num_models)
    limits = Limits(plan.num_slots, plan.context_tokens, plan.num_ahead)
    workspace = workspace_bytes(model, kernels, storage, limits, plan.prefill_tokens)
    free, total = torch.cuda.mem_get_info(plan.device)
    weights = model.get_memory_footprint()
    return Memory(total, free, workspace, weights, plan.other_weight_bytes).share(plan.num_models)


def _room(name: str, budget_bytes: int, storage: PagedStorage, plan: PagingPlan) -> tuple[int, int]:
    """Pages, and tokens of context that they allow."""
    page_bytes = storage.bytes_per_token * storage.page_size
    num_pages = budget_bytes // page_bytes
    if plan.device.type != "cuda":  # all of a GPU is the engine's own; a CPU's memory is not
        most = plan.num_slots * -(-plan.context_tokens // storage.page_size)
        num_pages = min(num_pages, most * 2 if plan.prefix_reuse else most)
    if num_pages < 1:
        raise ModelFailure(f"{name}: {budget_bytes} bytes for K/V do not hold a page of {page_bytes} bytes")
    room = num_pages * storage.page_size
    if room < plan.context_tokens:
        logger.warning("%s: memory for K/V ends at %d tokens, so the context is that and not %d",
                       name, room, plan.context_tokens)  # fmt: skip
    return num_pages, min(room, plan.context_tokens)
