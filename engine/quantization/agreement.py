"""How far two models agree on what comes next in a text: perplexities, the Kullback-Leibler divergence of their
distributions (nats per token), and how often they put the same token first."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

WINDOW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Predictions:
    """log_probabilities: (tokens, vocab) float16, on the CPU. perplexity: of the text, per token."""

    log_probabilities: Tensor
    perplexity: float


@dataclass(frozen=True, slots=True)
class Agreement:
    num_tokens: int
    same_first_choice_fraction: float
    kl_divergence_nats: float


@torch.inference_mode()
def predictions(model: Any, stream: Tensor) -> Predictions:
    """stream: (tokens + 1,) int64, cut into windows whose first tokens have little context."""
    parts: list[Tensor] = []
    nats = 0.0
    num_tokens = len(stream) - 1
    for begin in range(0, num_tokens, WINDOW_TOKENS):
        window = stream[begin : min(begin + WINDOW_TOKENS, num_tokens) + 1]
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
        log_probabilities = functional.log_softmax(logits.float(), dim=-1)
        nats += functional.nll_loss(log_probabilities, window[1:], reduction="sum").item()
        parts.append(log_probabilities.half())
    return Predictions(torch.cat(parts), math.exp(nats / num_tokens))


def compare(one: Predictions, other: Predictions) -> Agreement:
    """The divergence of `other` from `one`."""
    num_tokens = len(one.log_probabilities)
    same = divergence = 0.0
    for begin in range(0, num_tokens, WINDOW_TOKENS):
        left = one.log_probabilities[begin : begin + WINDOW_TOKENS]
        right = other.log_probabilities[begin : begin + WINDOW_TOKENS]
        same += (left.argmax(-1) == right.argmax(-1)).sum().item()
        divergence += functional.kl_div(right.float(), left.float(), reduction="sum", log_target=True).item()
    return Agreement(num_tokens, same / num_tokens, divergence / num_tokens)
