"""How many bytes the K/V of a model may take on a GPU: what is free less what the largest step takes beside them.

That is measured, as vLLM does: a dry run of the largest prefill and of a decode step with every row drawing by
temperature, over a few pages, and the peak of the allocator. CUDA graphs keep as much again in their own pool.

Several models share the device evenly, in whatever order they come: those that are not loaded yet are left their place.
"""

from dataclasses import dataclass

import torch
from torch import nn

from core.protocol import Sampling
from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.gpu.allocator import allocator
from engine.paged.attention import PagedKernels
from engine.paged.runner import Limits, PagedRunner
from engine.paged.storage import PagedStorage

_FRACTION = 0.92  # of what is then left; allocators fragment, and graphs have a description each


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a device, in bytes, when a model has its weights and no K/V yet.

    workspace: what the largest step of this model takes beside weights and K/V, its graphs included.
    own_weights, other_weights: of this model, and of all others that are to share the device, loaded or not.
    """

    total: int
    free: int
    workspace: int
    own_weights: int
    other_weights: int

    def share(self, num_models: int) -> int:
        """For this model's K/V: as much as for every other one's, and no more than is free. The others are taken to
        need as large a workspace. Where the models do not fit together, they must take turns, and none is left a place.
        """
        weights = self.own_weights + self.other_weights
        even = (self.total - weights) // num_models - self.workspace
        left = max(0, self.free - self.workspace)
        return int((min(even, left) if even > 0 else left) * _FRACTION)


def workspace_bytes(
    model: nn.Module, kernels: PagedKernels, storage: PagedStorage, limits: Limits, num_tokens: int
) -> int:
    """On a CUDA device. num_tokens: of the largest prefill. Leaves the storage with few pages."""
    device = storage.device
    context_tokens = min(limits.context_tokens, num_tokens)
    storage.allocate(-(-context_tokens // storage.page_size))
    runner = PagedRunner(model, storage, kernels, Limits(limits.num_rows, context_tokens, 0))
    allocator.release()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    dry_run(runner, storage, limits.num_rows, num_tokens)
    peak = torch.cuda.max_memory_allocated(device) - before
    runner.close()
    storage.allocate(0)
    allocator.release()
    return 2 * peak


def dry_run(runner: PagedRunner, storage: PagedStorage, num_rows: int, num_tokens: int) -> None:
    """A step of prompts of `num_tokens` in all, then one in which `num_rows` sequences decode. They all lie in the same
    pages, which hold nothing afterwards."""
    longest = storage.num_pages * storage.page_size
    lengths = [min(longest, num_tokens - start) for start in range(0, num_tokens, longest)]
    pages = list(range(storage.num_pages))
    for first in range(0, len(lengths), num_rows):
        prompts = [_sequence(length, pages) for length in lengths[first : first + num_rows]]
        runner.launch([Piece(prompt, len(prompt.token_ids)) for prompt in prompts]).result()
        for prompt in prompts:
            prompt.pages = []
    runner.launch([Piece(_sequence(1, pages[:1]), 1) for _ in range(num_rows)]).result()


def _sequence(num_tokens: int, pages: list[int]) -> Sequence:
    sequence = Sequence((b"", ""), [0] * num_tokens, Sampling(temperature=1.0), 0, 0, 0, 1)
    sequence.pages = list(pages)
    return sequence
