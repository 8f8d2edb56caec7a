"""Runs a step's pieces through a model whose K/V lie in pages. The only caller of the model there.

A step is two forward passes. What decodes goes first, padded to one of few batch sizes, by the replay of a graph; then
the pieces of prompts, side by side without padding and without a graph, whose launching from Python hides behind the
decoding. One pass for both would read the weights once instead of twice, which is little beside the work of a prompt,
and would have no graph.

The tokens that a step samples stay on the device, one per row, where the next step finds those that are `PENDING`.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.generation.scheduler import Piece, Step
from engine.generation.sequence import PENDING, Sequence
from engine.gpu.allocator import allocator
from engine.paged.attention import Paged, PagedKernels
from engine.paged.batch import DecodeBatch, pack_prompts, to_device
from engine.paged.graphs import CudaGraphs, DecodeReplays
from engine.paged.readback import SetMark, TokensComing, TokensHere, set_mark
from engine.paged.rows import Integers, RowTable
from engine.paged.sampling import LatestRestrictions, sample_greedy, sample_plain, sample_restricted
from engine.paged.storage import PagedStorage
from engine.sampling.draw import GREEDY_BELOW
from engine.sampling.sampler import sample
from engine.sampling.uniform import uniforms

_PROGRAMS_PER_PROCESSOR = 4  # of the decode kernel; so many are resident at once and hide each other's reads
_MAX_SPLITS = 32
_COLUMNS_PER_SPLIT = 128  # fewer cost more in joining than they save

_IDS, _POSITIONS, _ROWS, _NUMBERS = range(4)


@dataclass(frozen=True, slots=True)
class Limits:
    """num_rows: sequences that run at once. context_tokens: of one of them. num_ahead: as in StepRunner."""

    num_rows: int
    context_tokens: int
    num_ahead: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a forward pass gives: logits of the sequences whose new token follows from it.

    rows: theirs; on the device: rows, (sequences,) int64, and what is drawn with, (sequences,) float64.
    """

    logits: Tensor
    sequences: list[Sequence]
    rows: Integers
    device_rows: Tensor
    device_numbers: Tensor


class PagedRunner:
    """The storage may still learn its layers (the probe), or has its final pages; then `capture` may follow."""

    def __init__(
        self,
        model: nn.Module,
        storage: PagedStorage,
        kernels: PagedKernels,
        limits: Limits,
        set_mark: SetMark = set_mark,
    ) -> None:
        """set_mark: behind a launch, so that the host can tell when it is done."""
        self._set_mark = set_mark
        self._model = model
        self._storage = storage
        self._kernels = kernels
        self._limits = limits
        self._selects_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.device = storage.device
        self.num_ahead = limits.num_ahead
        self._rows = self._new_rows()
        self._restrictions = LatestRestrictions()
        self._replays = DecodeReplays(self._decode_logits, limits.num_rows)
        self._make_buffers()

    def _new_rows(self) -> RowTable:
        return RowTable(self._limits.num_rows, -(-self._limits.context_tokens // self._storage.page_size))

    @torch.inference_mode()
    def _make_buffers(self) -> None:
        """With a row behind the last for padding. inputs: (4, rows) int64, `_NUMBERS` being the bits of float64."""
        num_rows, device = self._limits.num_rows + 1, self.device
        self._page_tables = torch.full(
            (num_rows, self._rows.max_pages), self._storage.spare_page, dtype=torch.int32, device=device
        )
        self._last_tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._inputs = torch.zeros((4, num_rows), dtype=torch.int64, device=device)
        self._inputs[_ROWS] = self._rows.padding_row
        self._temperatures = torch.zeros(num_rows, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def capture(self) -> None:
        """Make the CUDA graphs; on a CPU there are none. Raises whatever kernels or a capture raise."""
        if self.device.type == "cuda":
            self._replays.capture(CudaGraphs(self.device))

    def prepare(self, step: Step) -> None:
        """Pages never move, and no cell is read before it is written."""

    @torch.inference_mode()
    def launch(self, pieces: list[Piece]) -> TokensComing | TokensHere:
        """A token, or why there is none, for every piece that is its sequence's last. May be repeated where it raised:
        tokens of this step take the place of those of the last one only when all has been launched."""
        try:
            passes = [one for one in self._passes(pieces) if one.sequences]
            launch, tokens = self._sample(passes)
        except Exception:
            self._rows.forget_told()
            raise
        if passes:
            self._last_tokens.index_copy_(0, torch.cat([one.device_rows for one in passes]), tokens.clamp(min=0))
        return launch

    @torch.inference_mode()
    def forward(self, pieces: list[Piece], least_rows: int = 1) -> Tensor:
        """(samples, vocabulary): logits of what decodes, then of prompts that end. For the probe: the sequences keep
        their K/V and no row. least_rows: what decodes is padded as if there were so many."""
        logits = torch.cat([one.logits for one in self._passes(pieces, least_rows)])
        self._rows = self._new_rows()
        return logits

    def wipe(self, sequence: Sequence) -> None:
        """Whoever comes to its pages reads no cell that it has not written."""

    def drop_kv(self) -> None:
        self._rows.forget_told()

    @torch.inference_mode()
    def is_device_alive(self) -> bool:
        """False after an error that poisons the whole CUDA context, from which only a new process recovers."""
        try:
            return bool((torch.zeros(1, device=self.device) + 1).item() == 1)
        except RuntimeError:
            return False

    def close(self) -> None:
        del self._model, self._storage, self._replays, self._page_tables, self._inputs
        if self.device.type == "cuda":
            allocator.release()

    def _passes(self, pieces: list[Piece], least_rows: int = 1) -> list[_Pass]:
        decoding = [piece for piece in pieces if piece.num_tokens == 1 and piece.is_last]
        prompts = [piece for piece in pieces if piece.num_tokens > 1 or not piece.is_last]
        rows = np.array([self._rows.row(piece.sequence) for piece in (*decoding, *prompts)], np.int64)
        self._update_device()
        passes = []
        if decoding:
            passes.append(self._decode(decoding, rows[: len(decoding)], least_rows))
        if prompts:
            passes.append(self._prefill(prompts))
        return passes

    def _update_device(self) -> None:
        """Page tables and sampling parameters of rows that changed."""
        changes = self._rows.take_changes()
        if changes is not None:
            places, pages = to_device(changes, self.device)
            self._page_tables.view(-1).index_copy_(0, places, pages.int())
        if self._rows.take_joined():
            self._temperatures.copy_(to_device(self._rows.temperatures, self.device))

    def _decode(self, pieces: list[Piece], rows: Integers, least_rows: int) -> _Pass:
        num_tokens = len(pieces)
        sequences = [piece.sequence for piece in pieces]
        inputs = np.zeros(self._inputs.shape, np.int64)
        inputs[_ROWS] = self._rows.padding_row
        inputs[_IDS, :num_tokens] = [sequence.token_ids[-1] for sequence in sequences]
        inputs[_POSITIONS, :num_tokens] = [sequence.num_cached_tokens for sequence in sequences]
        inputs[_ROWS, :num_tokens] = rows
        inputs[_NUMBERS, :num_tokens] = self._numbers(sequences, rows).view(np.int64)
        self._inputs.copy_(to_device(inputs, self.device))
        logits = self._replays.logits(self._replays.padded(max(num_tokens, least_rows)))[:num_tokens]
        numbers = self._inputs[_NUMBERS, :num_tokens].view(torch.float64)
        return _Pass(logits, sequences, rows, self._inputs[_ROWS, :num_tokens], numbers)

    def _decode_logits(self, batch_size: int) -> Tensor:
        """What a graph holds: reads `_inputs`, `_last_tokens` and `_page_tables` and no host memory."""
        page_size = self._storage.page_size
        given, positions, rows = (self._inputs[line, :batch_size] for line in (_IDS, _POSITIONS, _ROWS))
        ids = torch.where(given == PENDING, self._last_tokens[rows], given)
        cells = self._page_tables[rows, positions // page_size].long() * page_size + positions % page_size
        batch = DecodeBatch(
            self._storage, self._page_tables, cells, rows, positions + 1, self._num_splits(batch_size)
        )  # fmt: skip
        logits: Tensor = self._call(ids[None], positions[None], Paged(batch, self._kernels)).logits[0]
        return logits

    def _prefill(self, pieces: list[Piece]) -> _Pass:
        sequences = [piece.sequence for piece in pieces if piece.is_last]
        rows = np.array([self._rows.row(sequence) for sequence in sequences], np.int64)
        numbers = self._numbers(sequences, rows)
        device_rows, number_bits = to_device(np.stack([rows, numbers.view(np.int64)]), self.device)
        packed = pack_prompts(pieces, self._rows, self._storage, self._page_tables)
        ids, at = packed.input_ids[0], packed.logits_at
        ids[at] = torch.where(ids[at] == PENDING, self._last_tokens[device_rows], ids[at])
        keep = {"logits_to_keep": at} if self._selects_logits else {}
        output = self._call(packed.input_ids, packed.position_ids, Paged(packed.batch, self._kernels), **keep)
        logits = output.logits[0] if keep else output.logits[0, at]
        return _Pass(logits, sequences, rows, device_rows, number_bits.view(torch.float64))

    def _call(self, input_ids: Tensor, position_ids: Tensor, packed: Paged, **keep: Tensor) -> Any:
        return self._model(input_ids=input_ids, position_ids=position_ids, use_cache=False, packed=packed, **keep)

    def _numbers(self, sequences: list[Sequence], rows: Integers) -> npt.NDArray[np.float64]:
        counters = np.array([sequence.num_answer_tokens for sequence in sequences], np.uint64)
        return uniforms(self._rows.seeds[rows], counters)

    def _sample(self, passes: list[_Pass]) -> tuple[TokensComing | TokensHere, Tensor]:
        """The second: (sequences,) int64 on the device, of all passes; below 0 where there is no token."""
        if any(self._rows.is_general[one.rows].any() for one in passes):
            sampled = [result for one in passes for result in sample(one.logits, one.sequences)]
            return TokensHere(sampled), to_device(np.array([one.token_id for one in sampled], np.int64), self.device)
        tokens = torch.cat([self._sample_plain(one) for one in passes]) if passes else torch.empty(0, dtype=torch.int64)
        sequences = [sequence for one in passes for sequence in one.sequences]
        return TokensComing(sequences, tokens, partial(self._set_mark, self.device)), tokens

    def _sample_plain(self, one: _Pass) -> Tensor:
        if (self._rows.temperatures[one.rows] < GREEDY_BELOW).all():
            return sample_greedy(one.logits)
        temperatures = self._temperatures[one.device_rows]
        restricted = self._restrictions.of(one.sequences, one.logits)
        if restricted is not None:
            return sample_restricted(one.logits, temperatures, one.device_numbers, restricted)
        return sample_plain(one.logits, temperatures, one.device_numbers)

    def _num_splits(self, batch_size: int) -> int:
        """So many that the programs of the decode kernel fill the device."""
        if self.device.type != "cuda":
            return 1
        wanted = _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(self.device).multi_processor_count
        useful = -(-self._limits.context_tokens // _COLUMNS_PER_SPLIT)
        return max(1, min(-(-wanted // (batch_size * self._storage.num_kv_heads)), useful, _MAX_SPLITS))
