"""Decode steps that are computed again and again over the same buffers, on a GPU by replaying a CUDA graph.

A forward pass of transformers is thousands of small kernels, and launching them from Python takes longer than they run
in a decode step. A graph launches all of them at once. It is bound to its shapes and addresses: so there is one per
padded batch size, its inputs lie in buffers that are filled before a replay, and its memory comes from one pool that
all sizes share. On a CPU the same buffers are used and the pass is simply called.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.cuda import _POOL_HANDLE

logger = logging.getLogger(__name__)

Compute = Callable[[int], Tensor]
"""From a batch size to logits: (batch, vocabulary). Reads its inputs from buffers that keep their addresses."""

_NUM_WARM_UPS = 2  # kernels are compiled and libraries choose their algorithms in the first run, not in a capture


def batch_sizes(num_rows: int) -> list[int]:
    """1, 2, 4, then every 8th to 64, every 16th to 256, every 32nd beyond: at most a quarter is padding from 8 on,
    and 256 rows take 23 graphs. The last is `num_rows`."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, num_rows, 32)]
    return [*(size for size in steps if size < num_rows), num_rows]


class Replay(Protocol):
    def __call__(self) -> Tensor:
        """Logits, (batch, vocabulary); on a GPU until the next replay of any size."""


class EagerReplay:
    def __init__(self, compute: Compute, batch_size: int) -> None:
        self._compute = compute
        self._batch_size = batch_size

    def __call__(self) -> Tensor:
        return self._compute(self._batch_size)


class CudaGraphReplay:
    """pool: of memory, shared by graphs that never run at the same time. Raises RuntimeError where the pass does what
    a graph cannot hold, such as waiting for the device."""

    def __init__(self, compute: Compute, batch_size: int, pool: _POOL_HANDLE) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                compute(batch_size)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = compute(batch_size)

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._logits


class DecodeReplays:
    """One replay per padded batch size. `capture` makes all graphs at load time, so that no request waits for one."""

    def __init__(self, compute: Compute, num_rows: int) -> None:
        self._compute = compute
        self._replays: dict[int, Replay] = {size: EagerReplay(compute, size) for size in batch_sizes(num_rows)}

    def padded(self, num_tokens: int) -> int:
        return next(size for size in self._replays if size >= num_tokens)

    def logits(self, batch_size: int) -> Tensor:
        """batch_size: a padded one."""
        return self._replays[batch_size]()

    def capture(self) -> None:
        """The largest first: the smaller ones find room in its memory. A model that cannot be captured runs without
        graphs, and the log says so."""
        pool = torch.cuda.graph_pool_handle()
        captured: dict[int, Replay] = {}
        try:
            for size in sorted(self._replays, reverse=True):
                captured[size] = CudaGraphReplay(self._compute, size, pool)
        except RuntimeError as error:
            logger.warning(
                "decode steps run without CUDA graphs, which small batches feel most: this model's forward pass cannot "
                "be captured (%s)", str(error).splitlines()[0],
            )  # fmt: skip
            return
        self._replays = {size: captured[size] for size in self._replays}
