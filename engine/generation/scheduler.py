"""Decides before every step which sequences run and how many tokens of each. Knows no torch.

Every running sequence that has its prompt behind it decodes one token per step. Prompts are processed in pieces, at
most `prefill_tokens` a step in all, so that nobody who decodes stalls. Higher priority goes first, then first come,
first served; nobody overtakes the head of the queue. Where slots or KV memory run out, the youngest sequence of the
lowest priority gives way: it keeps its tokens, loses its K/V, and is prefilled again later.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from engine.generation.sequence import Sequence
from engine.kv.slots import Move, SlotPool

_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `num_tokens` uncached tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Whether a new token follows from it."""
        return self.num_tokens == self.sequence.num_uncached_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What the runner does next.

    moves: to be made before anything else. pieces: decoding sequences first, by slot, then pieces of prompts.
    num_rows, longest_tokens: what the KV grid must hold, for the sequences that pause in this step too.
    """

    moves: list[Move]
    pieces: list[Piece]
    num_rows: int
    longest_tokens: int


class Scheduler:
    def __init__(self, pool: SlotPool, prefill_tokens: int) -> None:
        self._pool = pool
        self._prefill_tokens = prefill_tokens
        self._waiting: list[Sequence] = []  # sorted by rank
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self._waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """A sequence that finished, failed or was cancelled."""
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def schedule(self) -> Step:
        self._shrink()
        self._admit()
        moves = self._close_gaps()
        pieces = [*self._decode_pieces(), *self._prefill_pieces()]
        return Step(moves, pieces, len(self._running), max((len(s.token_ids) for s in self._running), default=0))

    def _shrink(self) -> None:
        """Running sequences grow by a token per step; make room before the grid would burst."""
        while not self._fits(self._running):
            self._preempt(max(self._running, key=_rank))

    def _admit(self) -> None:
        while self._waiting and self._has_prefill_room(self._waiting[0]) and self._make_room(self._waiting[0]):
            sequence = self._waiting.pop(0)
            sequence.slot = self._pool.allocate()
            self._running.append(sequence)

    def _has_prefill_room(self, head: Sequence) -> bool:
        """A slot taken by a sequence that could not start in this step would be wasted."""
        ahead = sum(s.num_uncached_tokens for s in self._running if not s.is_decoding and s.priority >= head.priority)
        return ahead < self._prefill_tokens

    def _make_room(self, head: Sequence) -> bool:
        """Preempts sequences of lower priority, as few as will do, and only if that helps."""
        if not self._fits([s for s in self._running if s.priority >= head.priority], head):
            return False
        while not self._fits(self._running, head):
            self._preempt(max(self._running, key=_rank))
        return True

    def _fits(self, sequences: list[Sequence], *more: Sequence) -> bool:
        longest = max((len(s.token_ids) for s in (*sequences, *more)), default=0)
        return self._pool.can_hold(len(sequences) + len(more), longest)

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._pool.release(sequence.slot)
        sequence.slot = None
        sequence.num_cached_tokens = 0

    def _close_gaps(self) -> list[Move]:
        moves = []
        by_slot = {sequence.slot: sequence for sequence in self._running}
        while (gap := self._pool.next_move()) is not None:
            source, target = gap
            sequence = by_slot[source]
            self._pool.release(source)
            sequence.slot = self._pool.allocate()
            assert sequence.slot == target
            if sequence.num_cached_tokens:
                moves.append(Move(source, target, sequence.num_cached_tokens))
        return moves

    def _decode_pieces(self) -> Iterable[Piece]:
        decoding = [sequence for sequence in self._running if sequence.is_decoding]
        return [Piece(sequence, 1) for sequence in sorted(decoding, key=attrgetter("slot"))]

    def _prefill_pieces(self) -> Iterable[Piece]:
        room = self._prefill_tokens
        for sequence in sorted((s for s in self._running if not s.is_decoding), key=_rank):
            if room == 0:
                return
            num_tokens = min(room, sequence.num_uncached_tokens)
            room -= num_tokens
            yield Piece(sequence, num_tokens)
