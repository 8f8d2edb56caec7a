"""Decode steps that are computed again and again over the same buffers, on a GPU by replaying a CUDA graph.

A forward pass of transformers is thousands of small kernels, and launching them from Python takes longer than they run
in a decode step. A graph launches all of them at once. It is bound to its shapes and addresses: so there is one per
padded batch size, its inputs lie in buffers that are filled before a replay, its logits come to one buffer, and its
memory from one pool: all sizes share both. On a CPU the same buffers are used and the pass is simply called.

A capture that fails spoils torch's allocator for good, so every pass is rehearsed before.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from engine.gpu.allocator import allocator
from engine.gpu.waits import HostWaits, NoWaiting

logger = logging.getLogger(__name__)

Compute = Callable[[int], Tensor]
"""From a batch size to logits: (batch, vocabulary). Reads its inputs from buffers that keep their addresses."""


def batch_sizes(num_rows: int) -> list[int]:
    """1, 2, 4, then every 8th to 64, every 16th to 256, every 32nd beyond: at most a quarter is padding from 8 on,
    and 256 rows take 23 graphs. The last is `num_rows`."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, num_rows, 32)]
    return [*(size for size in steps if size < num_rows), num_rows]


class Replay(Protocol):
    def __call__(self) -> Tensor:
        """Logits, (batch, vocabulary); on a GPU until the next replay of any size."""


Capture = Callable[[Compute, int], Replay]
"""Of a batch size. Raises HostWaits where it cannot be; anything else is a failure."""


class EagerReplay:
    def __init__(self, compute: Compute, batch_size: int) -> None:
        self._compute = compute
        self._batch_size = batch_size

    def __call__(self) -> Tensor:
        return self._compute(self._batch_size)


class CudaGraphReplay:
    def __init__(self, graph: torch.cuda.CUDAGraph, logits: Tensor) -> None:
        self._graph = graph
        self._logits = logits

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._logits


def rehearse(compute: Compute, batch_size: int, device: torch.device) -> Tensor:
    """What it computes, so that a capture holds no surprises. Raises HostWaits where a graph cannot hold it.

    Two runs: in the first kernels are compiled and libraries choose their algorithms, for which they may wait.
    """
    compute(batch_size)
    with NoWaiting(device):
        return compute(batch_size)


class CudaGraphs:
    """Makes those of one model, the largest first: the smaller ones find room in its memory and in its logits.

    One stream for all, since libraries keep a workspace per stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._logits: Tensor | None = None

    def __call__(self, compute: Compute, batch_size: int) -> Replay:
        logits = self._rehearsed(compute, batch_size)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        kept = self._logits[:batch_size]
        del logits
        return CudaGraphReplay(self._captured(compute, batch_size, kept), kept)

    def _rehearsed(self, compute: Compute, batch_size: int) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            logits = rehearse(compute, batch_size, self._device)
        torch.cuda.current_stream().wait_stream(self._stream)
        return logits

    def _captured(self, compute: Compute, batch_size: int, kept: Tensor) -> torch.cuda.CUDAGraph:
        """Around torch's own context, which does not leave its stream where the capture fails, goes one that does."""
        graph = torch.cuda.CUDAGraph()
        with (
            allocator.capturing(),
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            kept.copy_(compute(batch_size))
        return graph


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

    def capture(self, capture: Capture) -> None:
        """The largest first. A model whose passes no graph can hold runs without, and the log says so. Raises whatever
        else a pass or its capture raises."""
        captured: dict[int, Replay] = {}
        try:
            for size in sorted(self._replays, reverse=True):
                captured[size] = capture(self._compute, size)
        except HostWaits as found:
            logger.warning(
                "decode steps run without CUDA graphs, which small batches feel most: in this model's forward pass %s",
                found,
            )
            return
        self._replays = {size: captured[size] for size in self._replays}
