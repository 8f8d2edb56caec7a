"""What every part of the benchmark is given: the device, how much to do, and where figures go."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from transformers import PretrainedConfig

from benchmarks.gpu.shapes import llama_8b, qwen3_600m, tiny
from benchmarks.report import Report


@dataclass(frozen=True, slots=True)
class Size:
    """How much to do. divisor: of the lengths of prompts and answers, and of the numbers of requests."""

    small_shape: Callable[[], PretrainedConfig]
    large_shape: Callable[[], PretrainedConfig]
    divisor: int
    batch_sizes: tuple[int, ...]
    num_steps: int
    num_peer_requests: int
    copy_bytes: int


FULL = Size(qwen3_600m, llama_8b, 1, (1, 8, 32, 64, 128, 256), 60, 64, 2**31)
QUICK = Size(qwen3_600m, llama_8b, 4, (1, 64), 20, 16, 2**30)
TINY = Size(tiny, tiny, 32, (1, 4), 4, 4, 2**22)


@dataclass(frozen=True, slots=True)
class Scene:
    """device: `cuda` or `cpu`. prefill_tokens: prompt tokens per step at most. kv: `rows`, `pages` or `auto`."""

    device: str
    size: Size
    report: Report
    prefill_tokens: int
    kv: str = "auto"
    bandwidth: list[float] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def free(self) -> None:
        """Between two models: nothing of the one must lie in the way of the other."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def machine_name(device: str) -> str:
    name = torch.cuda.get_device_name(0) if device == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, {datetime.now(UTC).date().isoformat()}"
