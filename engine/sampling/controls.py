"""What a sequence's parameters do to its logits before a token is chosen, and the state that takes. Knows no torch.

Most sequences have no controls at all (`make_controls` gives None), so that their rows are never copied or touched.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.protocol import Sampling
from engine.sampling.token_counts import TokenCounts


class Constraint(Protocol):
    """Which tokens a grammar allows next, for one answer."""

    @property
    def is_ready(self) -> bool:
        """Whether the rest can be asked without waiting for a compiler."""

    def check(self) -> None:
        """Once it is ready. Raises a MillraceError where the grammar could not be understood."""

    @property
    def is_complete(self) -> bool:
        """The text so far is all that the grammar has: the answer is over."""

    def fill(self, mask: NDArray[np.uint8]) -> None:
        """mask: a bit for every token, lowest first; set where the token may come next.

        Raises a MillraceError where none may, or where the grammar could not be understood.
        """

    def take(self, token_id: int) -> None:
        """The token that came."""


@dataclass(slots=True, eq=False)
class Controls:
    """bias_ids, bias_values: (tokens,); added to the logits. counts: None without penalties.

    held_ids: what would end the answer, held off until it has `sampling.min_tokens`; empty where there is nothing to
    hold off. constraint: None without a grammar.
    """

    sampling: Sampling
    bias_ids: NDArray[np.int64]
    bias_values: NDArray[np.float32]
    held_ids: NDArray[np.int64]
    counts: TokenCounts | None = None
    constraint: Constraint | None = None

    def act(self, num_answer_tokens: int) -> bool:
        """Whether anything is done to the logits of the token that follows these."""
        does_more = self.counts is not None or self.constraint is not None or len(self.bias_ids) > 0
        return does_more or len(self.held(num_answer_tokens)) > 0

    def held(self, num_answer_tokens: int) -> NDArray[np.int64]:
        """What may not come next."""
        return self.held_ids if num_answer_tokens < self.sampling.min_tokens else self.held_ids[:0]


def make_controls(
    sampling: Sampling, end_ids: Iterable[int], num_prompt_tokens: int, constraint: Constraint | None = None
) -> Controls | None:
    """end_ids: the model's end tokens. None where nothing is done to the logits."""
    is_counted = sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
    if not (sampling.logit_bias or is_counted or sampling.min_tokens or constraint is not None):
        return None
    with_prompt = sampling.repetition_penalty != 1
    ends = set(sampling.stop_token_ids).union(() if sampling.ignore_eos else end_ids) if sampling.min_tokens else ()
    return Controls(
        sampling,
        bias_ids=np.array(list(sampling.logit_bias), dtype=np.int64),
        bias_values=np.array(list(sampling.logit_bias.values()), dtype=np.float32),
        held_ids=np.array(sorted(ends), dtype=np.int64),
        counts=TokenCounts(num_prompt_tokens, with_prompt=with_prompt) if is_counted else None,
        constraint=constraint,
    )
