"""One request while it is generated: its tokens, how far its K/V reach, and where they lie. Knows no torch, no text."""

from dataclasses import dataclass, field

from core.protocol import Sampling
from engine.runtime import Key
from engine.sampling.controls import Controls

PENDING = -1  # stands for a token that has been computed and not yet read


@dataclass(slots=True, eq=False)
class Sequence:
    """token_ids: prompt and answer. num_cached_tokens: how many of them have K/V in row `slot` of the grid.

    order: counts arrivals; it decides within one priority. seed: always set; drawn where the request named none.
    max_answer_tokens: `sampling.max_tokens` or what the context leaves, whichever is less.
    index: which of the answers to its request it is. scope: K/V are shared only within it.
    pages: where its K/V lie, in order, where they lie in pages. was_admitted: whether it has ever run.
    num_reused_tokens: prompt tokens that a known prefix spared when it was first admitted. is_spoiled: set before it is
    removed where its K/V may hold a NaN, so that nobody takes them over. controls: what is done to its logits before a
    token is chosen; None is nothing. device_seconds: its share of the steps that it was in, by tokens.
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
    scope: str = ""
    pages: list[int] = field(default_factory=list)
    was_admitted: bool = False
    num_reused_tokens: int = 0
    is_spoiled: bool = False
    controls: Controls | None = None
    device_seconds: float = 0.0

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
    def is_pending(self) -> bool:
        """Its newest token is still on the device."""
        return self.token_ids[-1] == PENDING

    @property
    def needs_host_tokens(self) -> bool:
        """Whether its next token depends on which its last one was, beyond the model's input."""
        wanted = self.sampling
        return (
            wanted.json_schema is not None
            or wanted.repetition_penalty != 1
            or wanted.presence_penalty != 0
            or wanted.frequency_penalty != 0
        )

    @property
    def is_decoding(self) -> bool:
        """All but the newest answer token is cached; otherwise it is prefilling, for the first time or again."""
        return self.num_answer_tokens > 0 and self.num_uncached_tokens == 1
