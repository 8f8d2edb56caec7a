"""What jobs that are no inference are told to do: written by the API, read by the workers. And the workloads that a
benchmark can run by name."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec


class Warming(msgspec.Struct, frozen=True):
    """Bring a model into an engine's memory, then run these prompts."""

    prompts: list[str] = []
    max_tokens: int = 1


class Workload(msgspec.Struct, frozen=True):
    """Prompts and answers of these lengths, so many, so many at once."""

    prompt_tokens: int
    answer_tokens: int
    num_requests: int
    concurrency: int


class Quantization(msgspec.Struct, frozen=True):
    """method: `nf4` or `int8`, as bitsandbytes has them. name: of the artifact."""

    method: str
    name: str


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "short": Workload(prompt_tokens=16, answer_tokens=16, num_requests=64, concurrency=16),
        "chat": Workload(prompt_tokens=128, answer_tokens=64, num_requests=64, concurrency=16),
        "long": Workload(prompt_tokens=1024, answer_tokens=128, num_requests=32, concurrency=8),
    }
)
