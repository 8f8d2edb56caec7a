"""Decides before every step which sequences run and how many tokens of each. Knows no torch.

Every running sequence that has its prompt behind it decodes one token per step. Prompts are processed in pieces, of as
many tokens a step in all as `PrefillBudget` says, so that nobody who decodes stalls. Higher priority goes first, then
first come, first served; nobody overtakes the head of the queue, but while a sequence waits for a prefix that a running
one computes, others may pass it.

Where slots or K/V memory run out, the youngest sequence of the lowest priority gives way: it keeps its tokens, leaves
its K/V as a known prefix, and resumes later. That is also the reserve of those who wait for their answer: an online
request takes the place of the youngest bulk sequence in the very step that it arrives in. A slot kept free for it would
cost bulk work that slot's share of every step, all night; a sequence that gives way costs a copy of its K/V, or at
worst their second computation, and only when somebody does come.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from core.protocol import ONLINE_PRIORITY
from engine.generation.prefill_budget import PrefillBudget, is_bulk_paced
from engine.generation.sequence import Sequence
from engine.kv.pool import KvPool, RowOrders

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

    pieces: `num_decode` decoding sequences first, by slot, then pieces of prompts, of `num_prefill_tokens` in all.
    orders: to be carried out before them; None where K/V never move.
    """

    pieces: list[Piece]
    num_decode: int
    num_prefill_tokens: int
    orders: RowOrders | None = None


class Scheduler:
    """prefill_tokens: prompt tokens per step at most. shares_passes: whether prompts and those who decode go through
    the model together; where a piece of a prompt costs a pass of its own, bulk prompts get no small ones.
    is_bulk_held: while it is, no bulk sequence begins; one that gave way waits as well."""

    def __init__(self, pool: KvPool, prefill_tokens: int, *, shares_passes: bool = True) -> None:
        self._pool = pool
        self._shares_passes = shares_passes
        self._budget = PrefillBudget(prefill_tokens)
        self._waiting: list[Sequence] = []  # sorted by rank
        self._running: list[Sequence] = []
        self.num_preemptions_total = 0
        self.is_bulk_held = False

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running) or (bool(self._waiting) and not self._is_held(self._waiting[0]))

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
            return
        self._running.remove(sequence)
        if sequence.is_spoiled:
            self._pool.discard(sequence)
        else:
            self._pool.release(sequence)

    def observe(self, step: Step, seconds: float) -> None:
        """How long a step took, from which the size of later ones follows."""
        self._budget.observe(step.num_decode, step.num_prefill_tokens, seconds)

    def schedule(self) -> Step:
        self._shrink()
        self._pool.extend(self._running)
        room = self._prefill_room()
        self._admit(room)
        orders = self._pool.take_orders()
        decode, prefill = self._decode_pieces(), list(self._prefill_pieces(room))
        return Step([*decode, *prefill], len(decode), sum(piece.num_tokens for piece in prefill), orders)

    def _shrink(self) -> None:
        """Running sequences grow by a token per step; make room before their K/V would burst it."""
        while not self._pool.can_hold(self._running):
            self._preempt(max(self._running, key=_rank))

    def _prefill_room(self) -> int:
        decoding = [sequence for sequence in self._running if sequence.is_decoding]
        pending = [sequence for sequence in self._running if not sequence.is_decoding]
        num_first = self._pool.num_slots - self.num_running or 1  # the first may take another's place
        pending += [sequence for sequence in self._waiting[:num_first] if not self._is_held(sequence)]
        is_read = any(sequence.priority >= ONLINE_PRIORITY for sequence in decoding)
        is_awaited = any(sequence.priority >= ONLINE_PRIORITY for sequence in pending)
        paced = is_read or (self._shares_passes and is_bulk_paced(len(decoding), len(pending), is_awaited=is_awaited))
        return self._budget.num_tokens(len(decoding), is_paced=paced)

    def _admit(self, room: int) -> None:
        num_passed = 0
        while num_passed < min(len(self._waiting), self._pool.num_slots):
            sequence = self._waiting[num_passed]
            if self._is_held(sequence) or not (
                self._has_prefill_room(sequence, room) and self._can_make_room(sequence)
            ):
                return
            if self._pool.is_prefix_coming(sequence):
                num_passed += 1
            else:
                self._start(sequence)

    def _is_held(self, sequence: Sequence) -> bool:
        return self.is_bulk_held and sequence.priority < ONLINE_PRIORITY

    def _start(self, sequence: Sequence) -> None:
        while not self._pool.can_hold(self._running, sequence):
            self._preempt(max(self._running, key=_rank))
        self._waiting.remove(sequence)
        self._pool.admit(sequence)
        if not sequence.was_admitted:
            sequence.was_admitted = True
            sequence.num_reused_tokens = sequence.num_cached_tokens
        self._running.append(sequence)

    def _has_prefill_room(self, head: Sequence, room: int) -> bool:
        """A slot taken by a sequence that could not start in this step would be wasted."""
        ahead = sum(s.num_uncached_tokens for s in self._running if not s.is_decoding and s.priority >= head.priority)
        return ahead < room

    def _can_make_room(self, head: Sequence) -> bool:
        """Whether it fits as it is, or once sequences of lower priority have given way."""
        if self._pool.can_hold(self._running, head):
            return True
        return self._pool.can_hold([s for s in self._running if s.priority >= head.priority], head)

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions_total += 1
        self.remove(sequence)
        self.add(sequence)

    def _decode_pieces(self) -> list[Piece]:
        """One token of each. Whoever has its last token, and only waits for it to be read, is done."""
        decoding = [s for s in self._running if s.is_decoding and s.num_answer_tokens < s.max_answer_tokens]
        return [Piece(sequence, 1) for sequence in sorted(decoding, key=attrgetter("slot"))]

    def _prefill_pieces(self, room: int) -> Iterable[Piece]:
        for sequence in sorted((s for s in self._running if not s.is_decoding), key=_rank):
            if room == 0:
                return
            num_tokens = min(room, sequence.num_uncached_tokens)
            room -= num_tokens
            yield Piece(sequence, num_tokens)
