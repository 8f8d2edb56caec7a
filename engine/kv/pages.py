"""Which pages of K/V belong to whom: to running sequences, to known prefixes, or to nobody. Knows no torch.

A page holds the K/V of `page_size` tokens. A sequence's token at position p lies in `pages[p // page_size]`, cell
`p % page_size`; while it runs its list of pages only grows, and no page is ever copied or moved. A page whose tokens
are all computed becomes known by a digest of its scope and of every token up to its end, and whoever begins with the
same tokens in the same scope shares it. It is never written again: a sequence writes behind its cached tokens, and of
a known prefix it takes full pages only, and always leaves itself a token to compute. So the page it writes is its own.

Known pages that nobody uses stay until their room is needed; the one unused for longest gives way first, and of a
prefix its end before its beginning. A page that two sequences computed at the same time is known once; the other copy
stays with its owner and is free when that leaves.
"""

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from hashlib import blake2b

from engine.generation.sequence import Sequence

_DIGEST_BYTES = 32  # nobody can make two prefixes meet, not even on purpose


@dataclass(slots=True)
class _Chain:
    """Digests of a sequence's first full pages. num_known: how many of its pages have been offered as known ones."""

    digests: list[bytes] = field(default_factory=list)
    num_known: int = 0


class PagePool:
    """reuses_prefixes: False makes no page known, so that every prompt is computed."""

    def __init__(
        self, num_slots: int, num_pages: int, page_size: int, context_tokens: int, *, reuses_prefixes: bool = True
    ) -> None:
        if context_tokens > num_pages * page_size:
            raise ValueError(
                f"expected room for a context of {context_tokens} tokens, got {num_pages} pages of {page_size}"
            )
        self.num_slots = num_slots
        self.num_pages = num_pages
        self.page_size = page_size
        self.context_tokens = context_tokens
        self.num_prefix_hit_tokens_total = 0
        self.num_prefix_lookup_tokens_total = 0
        self._reuses_prefixes = reuses_prefixes
        self._free = list(range(num_pages - 1, -1, -1))
        self._free_slots = list(range(num_slots))  # a heap
        self._num_users = [0] * num_pages
        self._known: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}  # of known pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and unused, the one to give way first in front
        self._chains: dict[Sequence, _Chain] = {}  # of the admitted
        self._coming: dict[bytes, Sequence] = {}  # pages of prompts, and who will have computed them
        self._asked: OrderedDict[Sequence, _Chain] = OrderedDict()  # of those who wait, who ask at every step

    @property
    def budget_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def num_used_pages(self) -> int:
        """Pages of running sequences."""
        return self.num_pages - len(self._free) - len(self._idle)

    def can_hold(self, running: Collection[Sequence], newcomer: Sequence | None = None) -> bool:
        """Whether all of these fit at once with the tokens they have now; known prefixes give way to them."""
        if len(running) + (newcomer is not None) > self.num_slots:
            return False
        hits = [] if newcomer is None else self._hits(newcomer)
        num_pages = sum(map(self._num_missing, running))
        num_pages += 0 if newcomer is None else self._num_missing(newcomer) - len(hits)
        if len(running) == len(self._chains):
            return self.num_used_pages + sum(self._num_users[page] == 0 for page in hits) + num_pages <= self.num_pages
        return len({*hits, *(page for sequence in running for page in sequence.pages)}) + num_pages <= self.num_pages

    def is_prefix_coming(self, sequence: Sequence) -> bool:
        """Whether somebody of no lower priority is computing the first page that `sequence` would have to compute."""
        index = len(self._hits(sequence))
        if not self._coming or index >= (len(sequence.token_ids) - 1) // self.page_size:
            return False
        chain = self._chain(sequence)
        self._lengthen(chain, sequence, index + 1)
        owner = self._coming.get(chain.digests[index])
        return owner is not None and owner.priority >= sequence.priority

    def admit(self, sequence: Sequence) -> None:
        """Room for all its tokens. Those of a known prefix count as cached. `can_hold` was true."""
        hits, chain = self._hits(sequence), self._chain(sequence)
        self._count(sequence, len(hits) * self.page_size)
        for page in hits:
            if self._num_users[page] == 0:
                del self._idle[page]
            self._num_users[page] += 1
        chain.num_known = len(hits)
        self._chains[sequence] = chain
        self._asked.pop(sequence, None)
        self._announce(sequence)
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.pages = hits
        sequence.num_cached_tokens = len(hits) * self.page_size
        self._grow(sequence)

    def extend(self, running: Collection[Sequence]) -> None:
        """Room for all tokens they have now; what they have computed becomes known. `can_hold(running)` was true."""
        for sequence in running:
            self._learn(sequence)
            self._grow(sequence)

    def release(self, sequence: Sequence) -> None:
        """Its full pages stay known while nobody needs the room."""
        self._learn(sequence)
        self._leave(sequence)

    def discard(self, sequence: Sequence) -> None:
        """As `release`, but nothing of it is known any more. Who shares its pages keeps them."""
        for page in sequence.pages:
            self._unlearn(page)
        self._leave(sequence)

    def forget(self) -> None:
        """All K/V are gone. Nobody is admitted."""
        self._free += self._idle
        self._idle.clear()
        self._known.clear()
        self._digests.clear()

    def take_orders(self) -> None:
        """Nothing ever moves."""

    def _num_missing(self, sequence: Sequence) -> int:
        return max(0, -(-len(sequence.token_ids) // self.page_size) - len(sequence.pages))

    def _hits(self, sequence: Sequence) -> list[int]:
        """Known pages that its tokens begin with, all but the one in which its last token lies."""
        if not self._known:
            return []
        num_pages = (len(sequence.token_ids) - 1) // self.page_size
        chain, hits = self._chain(sequence), list[int]()
        for index in range(num_pages):
            self._lengthen(chain, sequence, index + 1)
            page = self._known.get(chain.digests[index])
            if page is None:
                break
            hits.append(page)
        return hits

    def _chain(self, sequence: Sequence) -> _Chain:
        """Of a sequence that waits, kept from one question to the next."""
        chain = self._asked.get(sequence)
        if chain is None:
            chain = self._asked[sequence] = _Chain()
            if len(self._asked) > 2 * self.num_slots:
                self._asked.popitem(last=False)
        return chain

    def _lengthen(self, chain: _Chain, sequence: Sequence, num_pages: int) -> None:
        """All tokens of these pages are known, none is pending."""
        digests, size = chain.digests, self.page_size
        while len(digests) < num_pages:
            before = digests[-1] if digests else _digest(b"scope", sequence.scope.encode())
            tokens = array("q", sequence.token_ids[len(digests) * size : (len(digests) + 1) * size])
            digests.append(_digest(b"page", before + tokens.tobytes()))

    def _count(self, sequence: Sequence, num_hit_tokens: int) -> None:
        if not sequence.was_admitted:
            self.num_prefix_hit_tokens_total += num_hit_tokens
            self.num_prefix_lookup_tokens_total += len(sequence.token_ids)

    def _announce(self, sequence: Sequence) -> None:
        """What it is going to compute, so that others who begin alike can wait for that."""
        if self._reuses_prefixes:
            chain = self._chains[sequence]
            self._lengthen(chain, sequence, (len(sequence.token_ids) - sequence.is_pending) // self.page_size)
            for digest in chain.digests[chain.num_known :]:
                self._coming.setdefault(digest, sequence)

    def _learn(self, sequence: Sequence) -> None:
        """Make its newly filled pages known, unless another copy is."""
        chain = self._chains[sequence]
        num_full = sequence.num_cached_tokens // self.page_size
        if num_full <= chain.num_known or not self._reuses_prefixes:
            return
        self._lengthen(chain, sequence, num_full)
        for index in range(chain.num_known, num_full):
            digest, page = chain.digests[index], sequence.pages[index]
            self._coming.pop(digest, None)
            known = self._known.setdefault(digest, page)
            if known == page:
                self._digests[page] = digest
            elif known in self._idle:
                self._idle.move_to_end(known)
        chain.num_known = num_full

    def _unlearn(self, page: int) -> None:
        digest = self._digests.pop(page, None)
        if digest is not None:
            del self._known[digest]

    def _grow(self, sequence: Sequence) -> None:
        for _ in range(self._num_missing(sequence)):
            page = self._take()
            self._num_users[page] = 1
            sequence.pages.append(page)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._idle.popitem(last=False)
        self._unlearn(page)
        return page

    def _leave(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        heapq.heappush(self._free_slots, sequence.slot)
        for page in reversed(sequence.pages):
            self._num_users[page] -= 1
            if self._num_users[page] == 0:
                self._retire(page)
        chain = self._chains.pop(sequence)
        for digest in chain.digests[chain.num_known :]:
            if self._coming.get(digest) is sequence:
                del self._coming[digest]
        sequence.pages = []
        sequence.slot = None
        sequence.num_cached_tokens = 0

    def _retire(self, page: int) -> None:
        if page in self._digests:
            self._idle[page] = None
        else:
            self._free.append(page)


def _digest(kind: bytes, data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES, person=kind).digest()
