"""A chosen token's log-probability and its most probable rivals, as numbers. Knows no torch, and no text.

They are of the model's own distribution, whatever was done to the logits before the choice.
"""

from dataclasses import dataclass

LOWEST_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot carry; OpenAI's number for "very unlikely"


@dataclass(frozen=True, slots=True)
class Logprobs:
    """chosen: natural logarithm. top: (token id, logarithm), falling."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
