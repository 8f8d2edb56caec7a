"""From logits to tokens, for all rows at once and each by its own parameters.

The order is: logit_bias, penalties, min_tokens, grammar (`adjust`); then temperature, top_k, top_p, min_p, as in
transformers' `generate` (`draw`). A row that uses none of them is read once and never copied. A row's random number
depends on its seed and on how many tokens its answer has, on nothing else: the same seed gives the same tokens whatever
else is in the batch, and after a preemption too.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from core.errors import MillraceError, ModelFailure
from core.protocol import Sampling
from engine.generation.execution import Sampled
from engine.generation.sequence import PENDING, Sequence
from engine.sampling.adjust import adjust
from engine.sampling.draw import GREEDY_BELOW, draw, draw_restricted, scaled
from engine.sampling.greedy import best_tokens
from engine.sampling.logprobs import LOWEST_LOGPROB, Logprobs
from engine.sampling.restrict import Restrictions
from engine.sampling.uniform import seed_array, uniforms

_CPU_CHUNK = 1 << 22  # logits copied at a time: 16 MB, which the allocator reuses and the caches nearly hold


def is_plain(sequence: Sequence) -> bool:
    """Whether only temperature, top_k, top_p and min_p act on its logits, and a step is to find nothing but the token.

    `draw.plain_tokens` and `draw.restricted_tokens` give such rows the same tokens as `sample`.
    """
    return sequence.controls is None and sequence.sampling.num_logprobs is None


def sample(logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
    """logits: (rows, vocabulary) of any float dtype; not changed. A row that is not finite fails alone."""
    best = best_tokens(logits)
    tokens: list[int] = best.tokens.masked_fill(~best.is_finite, PENDING).tolist()
    failures: dict[int, MillraceError] = {row: _not_finite() for row, token in enumerate(tokens) if token == PENDING}
    changed = [row for row, sequence in enumerate(sequences) if row not in failures and _is_changed(sequence)]
    for rows in _chunks(changed, logits):
        chosen, failed = _choose(_copied(logits, rows), [sequences[row] for row in rows])
        tokens = _replaced(tokens, rows, chosen)
        failures |= {rows[place]: error for place, error in failed.items()}
    observed = [row for row, s in enumerate(sequences) if s.sampling.num_logprobs is not None and row not in failures]
    logprobs: dict[int, Logprobs] = {}
    for rows in _chunks(observed, logits):
        logprobs |= zip(rows, _logprobs(_copied(logits, rows), tokens, rows, sequences), strict=True)
    return [
        Sampled(sequence, token, failures.get(row), logprobs.get(row))
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
    ]


def random_numbers(sequences: Iterable[Sequence], device: torch.device) -> Tensor:
    """(rows,) float64: what each sequence's next token is drawn with."""
    seeds, counters = zip(*((s.seed, s.num_answer_tokens) for s in sequences), strict=True)
    return torch.from_numpy(uniforms(seed_array(seeds), np.array(counters, dtype=np.uint64))).to(device)


def _is_changed(sequence: Sequence) -> bool:
    """Whether its token may be another than the most probable one."""
    controls = sequence.controls
    return (controls is not None and controls.act(sequence.num_answer_tokens)) or _is_drawn(sequence)


def _is_drawn(sequence: Sequence) -> bool:
    return sequence.sampling.temperature >= GREEDY_BELOW


def _chunks(rows: list[int], logits: Tensor) -> Iterator[list[int]]:
    size = len(rows) if logits.device.type != "cpu" else max(1, _CPU_CHUNK // logits.shape[-1])
    for start in range(0, len(rows), size or 1):
        yield rows[start : start + size]


def _copied(logits: Tensor, rows: list[int]) -> Tensor:
    """(rows, vocabulary) float32."""
    is_run = rows[-1] - rows[0] + 1 == len(rows)
    chosen = logits[rows[0] : rows[-1] + 1] if is_run else logits[torch.tensor(rows, device=logits.device)]
    return chosen.to(torch.float32, copy=is_run)


def _replaced(tokens: list[int], rows: list[int], chosen: list[int]) -> list[int]:
    replaced = dict(zip(rows, chosen, strict=True))
    return [replaced.get(row, token) for row, token in enumerate(tokens)]


def _choose(logits: Tensor, sequences: list[Sequence]) -> tuple[list[int], dict[int, MillraceError]]:
    """logits: (rows, vocabulary) float32, finite; overwritten."""
    failures = adjust(logits, sequences)
    best = best_tokens(logits)
    for row, is_finite in enumerate(best.is_finite.tolist()):
        if not is_finite:
            failures.setdefault(row, ModelFailure("the request's own parameters leave no token that may come next"))
    drawn = [row for row, sequence in enumerate(sequences) if _is_drawn(sequence) and row not in failures]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        heights = logits.gather(1, best.tokens[:, None]).squeeze(1)
        best.tokens[index] = _draw(_part(logits, index), heights[index], [sequences[row] for row in drawn])
    return best.tokens.tolist(), failures


def _draw(logits: Tensor, heights: Tensor, sequences: list[Sequence]) -> Tensor:
    """heights: (rows,), of the best token. Overwrites logits."""
    temperatures = _column([s.sampling.temperature for s in sequences], logits)
    logits, numbers = scaled(logits, heights, temperatures), random_numbers(sequences, logits.device)
    tokens = torch.empty(len(sequences), dtype=torch.int64, device=logits.device)
    is_sorted = [s.sampling.top_p < 1 or s.sampling.top_k > 0 for s in sequences]
    for wanted, way in ((True, _draw_sorted), (False, _draw_unsorted)):
        rows = [row for row, flag in enumerate(is_sorted) if flag is wanted]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            tokens[index] = way(_part(logits, index), numbers[index], [sequences[row].sampling for row in rows])
    return tokens


def _draw_sorted(logits: Tensor, numbers: Tensor, samplings: list[Sampling]) -> Tensor:
    vocabulary = logits.shape[-1]
    top_k = torch.tensor([min(s.top_k or vocabulary, vocabulary) for s in samplings], device=logits.device)
    top_p = torch.tensor([s.top_p for s in samplings], dtype=torch.float64, device=logits.device)
    return draw_restricted(logits, numbers, Restrictions(top_k, top_p, _column([s.min_p for s in samplings], logits)))


def _draw_unsorted(logits: Tensor, numbers: Tensor, samplings: list[Sampling]) -> Tensor:
    min_p = [s.min_p for s in samplings]
    return draw(logits, numbers, _column(min_p, logits) if any(min_p) else None)


def _logprobs(logits: Tensor, tokens: list[int], rows: list[int], sequences: list[Sequence]) -> list[Logprobs]:
    """logits: of `rows` alone. tokens, sequences: of all."""
    distribution = logits.log_softmax(dim=-1).clamp_(min=LOWEST_LOGPROB)
    chosen = distribution.gather(1, torch.tensor([tokens[row] for row in rows], device=logits.device)[:, None])
    numbers = [sequences[row].sampling.num_logprobs or 0 for row in rows]
    values, ids = distribution.topk(min(max(numbers), logits.shape[-1]), dim=-1)
    top = (list(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True))
    return [
        Logprobs(logprob, tuple(rivals[:number]))
        for logprob, rivals, number in zip(chosen.squeeze(1).tolist(), top, numbers, strict=True)
    ]


def _part(logits: Tensor, index: Tensor) -> Tensor:
    """The rows themselves where it is all of them."""
    return logits if len(index) == len(logits) else logits[index]


def _column(values: list[float], logits: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=logits.device)


def _not_finite() -> ModelFailure:
    return ModelFailure("the model computed NaN or infinity for this request; another precision (dtype) may help")
