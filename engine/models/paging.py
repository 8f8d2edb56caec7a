"""Brings a model's K/V into pages: kernels, proof, number of pages, CUDA graphs. Knows no request.

Graphs are made only when the pages have their final places, and the proof is then repeated through them.
"""

import importlib
import logging
from dataclasses import dataclass
from typing import Any, cast

import torch

from core.errors import ModelFailure
from engine.kv.pages import PagePool
from engine.models.memory import kv_budget_bytes
from engine.models.probe import probe
from engine.models.substitution import use_native_layers
from engine.native.kernels import Kernels
from engine.paged import attention
from engine.paged.attention import ATTENTION_NAME, PagedKernels
from engine.paged.reference import ReferenceKernels
from engine.paged.runner import Limits, PagedRunner
from engine.paged.sizing import free_bytes
from engine.paged.storage import PAGE_SIZE, PagedStorage

logger = logging.getLogger(__name__)

_PROBE_SEQUENCES = 2


@dataclass(frozen=True, slots=True)
class PagingPlan:
    """context_tokens: wanted of a sequence; memory may leave less. kv_bytes: 0 is what is free. num_ahead: as in
    StepRunner. native: whether a GPU's own kernels may take the place of norms and rotations."""

    device: torch.device
    num_slots: int
    context_tokens: int
    prefill_tokens: int
    kv_bytes: int
    num_models: int
    prefix_reuse: bool
    num_ahead: int
    native: bool


def page_model(name: str, model: Any, plan: PagingPlan) -> tuple[PagedRunner, PagePool]:
    """Raises ModelFailure where the probe finds another result than the model's own, or memory does not do."""
    attention.register()
    if plan.native and plan.device.type == "cuda":
        elementwise = _from_triton("engine.gpu.elementwise").GpuElementwise()
        use_native_layers(name, model, cast("Kernels", elementwise))  # of which it offers what layers ask for
    kernels = _kernels(plan.device)
    storage = PagedStorage(_PROBE_SEQUENCES, plan.device)
    first = PagedRunner(model, storage, kernels, Limits(_PROBE_SEQUENCES, PAGE_SIZE, 0))
    probe(name, model, ATTENTION_NAME, first.forward)
    num_pages, context_tokens = _room(name, _budget_bytes(model, kernels, storage, plan), storage, plan)
    storage.allocate(num_pages)
    runner = PagedRunner(model, storage, kernels, Limits(plan.num_slots, context_tokens, plan.num_ahead))
    if plan.device.type == "cuda":
        runner.capture()
        probe(name, model, ATTENTION_NAME, runner.forward)
    pool = PagePool(plan.num_slots, num_pages, PAGE_SIZE, context_tokens, reuses_prefixes=plan.prefix_reuse)
    return runner, pool


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
    return free_bytes(model, kernels, storage, limits, plan.prefill_tokens) // plan.num_models


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
