"""Runs a step's pieces through the model in one forward pass and samples. The only caller of the model."""

import inspect

import torch
from torch import Tensor, nn

from core.errors import ModelFailure
from engine.generation.packing import Packed, pack
from engine.generation.scheduler import Piece, Step
from engine.generation.sequence import Sequence
from engine.kv.grid import KvGrid
from engine.kv.slots import SlotPool
from engine.sampling.sampler import sample

Sampled = tuple[Sequence, int | ModelFailure]


class Runner:
    def __init__(self, model: nn.Module, grid: KvGrid, device: torch.device) -> None:
        self._model = model
        self._grid = grid
        self.device = device
        self._selects_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def prepare(self, step: Step, pool: SlotPool) -> None:
        """Shape the grid and close its gaps. Once per step: to repeat it would copy the wrong rows."""
        self._grid.resize(pool.grid_shape(step.num_rows, step.longest_tokens, self._grid.shape))
        for move in step.moves:
            self._grid.move(move)

    @torch.inference_mode()
    def run(self, pieces: list[Piece]) -> list[Sampled]:
        """A token, or why there is none, for every piece that is its sequence's last. May be repeated."""
        packed = pack(pieces, self._grid, self.device)
        logits = self.forward(packed)
        if not packed.samples:
            return []
        tokens = sample(logits, packed.samples)
        return [(sequence, _checked(token)) for sequence, token in zip(packed.samples, tokens, strict=True)]

    def forward(self, packed: Packed) -> Tensor:
        """Logits of the packed positions that ask for them: (samples, vocabulary)."""
        keep = {"logits_to_keep": packed.logits_at} if self._selects_logits else {}
        output = self._model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed, **keep
        )
        logits: Tensor = output.logits[0]
        return logits if keep else logits[packed.logits_at]

    @torch.inference_mode()
    def wipe(self, slot: int) -> None:
        self._grid.wipe(slot)

    def drop_grid(self) -> None:
        """After a failed `prepare`, which may have left layers of different shapes."""
        self._grid.drop()

    def is_device_alive(self) -> bool:
        """False after an error that poisons the whole CUDA context, from which only a new process recovers."""
        try:
            return bool((torch.zeros(1, device=self.device) + 1).item() == 1)
        except RuntimeError:
            return False

    def close(self) -> None:
        del self._model, self._grid
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _checked(token: int | None) -> int | ModelFailure:
    if token is not None:
        return token
    return ModelFailure("the model computed NaN or infinity for this request; another precision (dtype) may help")
