"""The queues: which there are and what they are called.

`online.<model>` and `batch.<model>` wake the workers of the engines that serve a model; `heavy.<node>` has the long
jobs that need a device of their own; `control` the short upkeep that rescues work; `upkeep` the long upkeep, so that no
large file delays a rescue.
"""

from collections.abc import Sequence

from core.job import ServiceClass

CONTROL = "control"
UPKEEP = "upkeep"


def inference_queue(service_class: str, model: str) -> str:
    return f"{ServiceClass(service_class).value}.{model}"


def inference_queues(service_class: ServiceClass, models: Sequence[str]) -> list[str]:
    return [inference_queue(service_class, model) for model in models]


def heavy_queue(node: str) -> str:
    return f"heavy.{node}"
