"""Models that a certain token makes misbehave, after their probe has found them sound."""

from collections.abc import Callable
from typing import Any

import torch

from tests.engine_harness import Harness
from tests.engine_models import tiny_model

POISON = 7
Harm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (ids, embedded) -> embedded


def poisoned(harm: Harm, **options: Any) -> Harness:
    """`harm` is done to every step's embedding. options: as in LoadOptions."""
    model = tiny_model("llama")
    harness = Harness(model, **options)
    model.get_input_embeddings().register_forward_hook(lambda _, arguments, output: harm(arguments[0], output))
    return harness


def explode(ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    if POISON in ids.tolist()[0]:
        raise RuntimeError("a kernel failed")
    return embedded


def spoil(ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    return embedded.masked_fill((ids == POISON)[..., None], float("nan"))
