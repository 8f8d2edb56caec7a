"""Runs a step's pieces through the model in one forward pass and samples. The only caller of the model."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.generation.execution import Sampled
from engine.generation.packing import Packed, pack
from engine.generation.scheduler import Piece, Step
from engine.generation.sequence import Sequence
from engine.gpu.allocator import allocator
from engine.kv.grid import KvGrid
from engine.kv.store import BlockStore
from engine.sampling.sampler import sample


@dataclass(frozen=True, slots=True)
class Computed:
    """A launch that is over when it returns."""

    sampled: list[Sampled]

    def result(self) -> list[Sampled]:
        return self.sampled


class Runner:
    num_ahead = 0

    def __init__(self, model: nn.Module, grid: KvGrid, device: torch.device) -> None:
        self._model = model
        self._grid = grid
        self._store = BlockStore(grid)
        self.device = device
        self._selects_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def prepare(self, step: Step) -> None:
        """Bring K/V where the step expects them. Once per step: to repeat it would copy the wrong rows."""
        orders = step.orders
        assert orders is not None, "rows move"
        self._store.move(orders.block_moves)
        self._store.resize(orders.num_blocks)
        self._store.save(orders.saves)
        for move in orders.moves:
            self._grid.move(move)
        self._grid.resize(orders.shape)
        self._store.load(orders.loads)

    def launch(self, pieces: list[Piece]) -> Computed:
        return Computed(self.run(pieces))

    @torch.inference_mode()
    def run(self, pieces: list[Piece]) -> list[Sampled]:
        """A token, or why there is none, for every piece that is its sequence's last. May be repeated."""
        packed = pack(pieces, self._grid, self.device)
        logits = self.forward(packed)
        return sample(logits, packed.samples)

    def forward(self, packed: Packed) -> Tensor:
        """Logits of the packed positions that ask for them: (samples, vocabulary)."""
        keep = {"logits_to_keep": packed.logits_at} if self._selects_logits else {}
        output = self._model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed, **keep
        )
        logits: Tensor = output.logits[0]
        return logits if keep else logits[packed.logits_at]

    @torch.inference_mode()
    def wipe(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._grid.wipe(sequence.slot)

    def drop_kv(self) -> None:
        """After a failed `prepare`, which may have left layers of different shapes."""
        self._grid.drop()
        self._store.drop()

    def is_device_alive(self) -> bool:
        """False after an error that poisons the whole CUDA context, from which only a new process recovers."""
        try:
            return bool((torch.zeros(1, device=self.device) + 1).item() == 1)
        except RuntimeError:
            return False

    def close(self) -> None:
        del self._model, self._grid, self._store
        if self.device.type == "cuda":
            allocator.release()
