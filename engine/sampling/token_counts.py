"""Which tokens a sequence holds, and how often its answer holds them: what penalties look at. Knows no torch.

Counted as the sequence grows, so that a step costs as much as it has new tokens, whatever the length of the answer. A
sequence that gives way and is prefilled again keeps its tokens, and so its counts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SMALLEST_ROOM = 64


class TokenCounts:
    """num_prompt_tokens: of them counts only that they are there. with_prompt: or not even that."""

    def __init__(self, num_prompt_tokens: int, *, with_prompt: bool) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._with_prompt = with_prompt
        self._num_counted = 0 if with_prompt else num_prompt_tokens
        self._place: dict[int, int] = {}
        self._ids = np.empty(_SMALLEST_ROOM, dtype=np.int64)
        self._counts = np.zeros(_SMALLEST_ROOM, dtype=np.float32)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct tokens, in order of appearance."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often the answer holds each of `ids`: 0 where only the prompt does."""
        return self._counts[: len(self._place)]

    def update(self, token_ids: Sequence[int]) -> None:
        """token_ids: prompt and answer, of which those that are new are counted."""
        for position in range(self._num_counted, len(token_ids)):
            place = self._place_of(token_ids[position])
            if position >= self._num_prompt_tokens:
                self._counts[place] += 1
        self._num_counted = len(token_ids)

    def _place_of(self, token_id: int) -> int:
        place = self._place.get(token_id)
        if place is None:
            place = self._place[token_id] = len(self._place)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token_id
        return place
