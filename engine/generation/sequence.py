"""One request while it is generated: its tokens, how far its K/V reach, and where they lie. Knows no torch, no text."""

from dataclasses import dataclass, field

from core.protocol import Sampling
from engine.runtime import Key


@dataclass(slots=True, eq=False)
class Sequence:
    """token_ids: prompt and answer. num_cached_tokens: how many of them have K/V in row `slot` of the grid.

    order: counts arrivals; it decides within one priority. seed: always set; drawn where the request named none.
    max_answer_tokens: `sampling.max_tokens` or what the context leaves, whichever is less.
    index: which of the answers to its request it is.
    """

    key: Key
    token_ids: list[int]
    sampling: Sampling
    priority: int
    order: int
    seed: int
    max_answer_tokens: int
    num_prompt_tokens: int = field(init=False)
    num_cached_tokens: int = 0
    slot: int | None = None
    index: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts by who runs first."""
        return (-self.priority, self.order)

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def answer_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_uncached_tokens(self) -> int:
        return len(self.token_ids) - self.num_cached_tokens

    @property
    def is_decoding(self) -> bool:
        """All but the newest answer token is cached; otherwise it is prefilling, for the first time or again."""
        return self.num_answer_tokens > 0 and self.num_uncached_tokens == 1
