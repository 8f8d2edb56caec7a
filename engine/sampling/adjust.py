"""Does to logits what sequences' parameters ask, for all rows that ask, before a token is chosen.

In this order: logit_bias, penalties, what may not end the answer yet, the grammar. The repetition penalty is that of
transformers (`RepetitionPenaltyLogitsProcessor`; Keskar et al. 2019, CTRL), on prompt and answer; presence and
frequency penalties are OpenAI's, on the answer alone, after it, as vLLM does.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import MillraceError
from engine.generation.sequence import Sequence
from engine.sampling.controls import Controls


@dataclass(frozen=True, slots=True)
class _Row:
    index: int
    sequence: Sequence
    controls: Controls


def adjust(logits: Tensor, sequences: Rows[Sequence]) -> dict[int, MillraceError]:
    """Changes `logits` in place and returns why rows have no token, by row. logits: (rows, vocabulary) float32."""
    rows = [_Row(i, sequence, sequence.controls) for i, sequence in enumerate(sequences) if sequence.controls]
    _add_biases(logits, [row for row in rows if len(row.controls.bias_ids)])
    _penalise(logits, [row for row in rows if row.controls.counts is not None])
    _hold_off(logits, [row for row in rows if row.controls.constraint is None])
    return _constrain(logits, [row for row in rows if row.controls.constraint is not None])


def _add_biases(logits: Tensor, rows: list[_Row]) -> None:
    if rows:
        places = _places(logits, rows, [row.controls.bias_ids for row in rows])
        logits[places] += _joined(logits, [row.controls.bias_values for row in rows])


def _penalise(logits: Tensor, rows: list[_Row]) -> None:
    ids, counts, factors = [], [], []
    for row in rows:
        seen = row.controls.counts
        assert seen is not None
        seen.update(row.sequence.token_ids)
        ids.append(seen.ids)
        counts.append(seen.counts)
        sampling = row.sequence.sampling
        factors.append((sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty))
    if not any(map(len, ids)):
        return
    places, occurrences = _places(logits, rows, ids), _joined(logits, counts)
    spread = np.repeat(np.array(factors, dtype=np.float32), list(map(len, ids)), axis=0)
    repetition, frequency, presence = torch.from_numpy(spread).to(logits.device).unbind(dim=1)
    values = logits[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[places] = values - frequency * occurrences - presence * (occurrences > 0)


def _hold_off(logits: Tensor, rows: list[_Row]) -> None:
    held = [row.controls.held(row.sequence.num_answer_tokens) for row in rows]
    if any(map(len, held)):
        logits[_places(logits, rows, held)] = -torch.inf


def _constrain(logits: Tensor, rows: list[_Row]) -> dict[int, MillraceError]:
    failures: dict[int, MillraceError] = {}
    masks, indices = [], []
    for row in rows:
        try:
            masks.append(_mask(row, logits.shape[-1]))
            indices.append(row.index)
        except MillraceError as error:
            failures[row.index] = error
    if indices:
        where = torch.tensor(indices, device=logits.device)
        bits = torch.from_numpy(np.stack(masks)).to(logits.device)
        logits[where] = logits[where].masked_fill_(~_unpacked(bits, logits.shape[-1]), -torch.inf)
    return failures


def _mask(row: _Row, vocabulary: int) -> NDArray[np.uint8]:
    """Where the grammar leaves nothing but to end, the answer ends, however few tokens it has."""
    constraint = row.controls.constraint
    assert constraint is not None
    mask = np.zeros((vocabulary + 7) // 8, dtype=np.uint8)
    constraint.fill(mask)
    held = row.controls.held(row.sequence.num_answer_tokens)
    longer = mask.copy()
    np.bitwise_and.at(longer, held >> 3, (~(1 << (held & 7))).astype(np.uint8))
    return longer if longer.any() else mask


def _unpacked(bits: Tensor, vocabulary: int) -> Tensor:
    """(rows, vocabulary) bool, of (rows, bytes) uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, :, None] >> shifts) & 1).bool().flatten(1)[:, :vocabulary]


def _places(logits: Tensor, rows: list[_Row], ids: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Index of the tokens `ids[n]` of row n, all rows behind each other."""
    indices = np.repeat(np.array([row.index for row in rows], dtype=np.int64), list(map(len, ids)))
    return _moved(logits, indices), _moved(logits, np.concatenate(ids))


def _joined(logits: Tensor, values: list[NDArray[np.float32]]) -> Tensor:
    return _moved(logits, np.concatenate(values))


def _moved(logits: Tensor, array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array).to(logits.device)
