"""The proof that a loaded model may be served: packed, its logits are those of its own forward pass.

Two short sequences go through the packed path side by side: one prompt whole, one in two pieces, one decoding while the
other prefills. A model whose code does something that the packed path does not know fails here with a sentence, and
not in somebody's answers. Its own logits are taken before anything of it is replaced: an error of the replacements
shows as well.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import MillraceError, ModelFailure
from core.protocol import Sampling
from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.models.support import context_bound

Forward = Callable[[list[Piece]], Tensor]
"""Logits of the pieces that are their sequence's last, in order: (samples, vocabulary)."""

_NUM_TOKENS = 8
_FIRST, _SECOND = 3, 4  # tokens of the one prompt, and of the first piece of the other
_FARTHEST = 4096  # tokens
_LIMIT = {torch.float32: 0.01, torch.float16: 0.05}
_LIMIT_HALF = 0.15  # relative; a wrong mask or position gives about 1


def reference(name: str, model: Any) -> list[Tensor]:
    """What `probe` compares with, of a model as it was loaded. Raises ModelFailure."""
    return _translated(f"{name} fails in its own forward pass", lambda: own_logits(model))


def probe(name: str, model: Any, attention_name: str, forward: Forward, own: list[Tensor]) -> None:
    """own: of `reference`. Raises ModelFailure. Leaves the model with the attention of that name, a packed one,
    switched on.

    The sequences have rows 0 and 1, and page 0 and 1.
    """
    model.set_attn_implementation(attention_name)
    packed = _translated(f"{name} does not run in packed form", lambda: packed_logits(model, forward))
    worst = max(difference(*pair) for pair in zip(packed, own, strict=True))
    if not worst <= difference_limit(model.dtype):  # NaN fails too
        raise ModelFailure(
            f"{name} gives other logits in packed form than by itself (relative difference {worst:.2g}); "
            "its attention does something that this engine does not know, its weights are damaged, or a kernel made "
            "for this machine is wrong, which --no-native would show"
        )


@torch.inference_mode()
def own_logits(model: Any) -> list[Tensor]:
    """Of the last tokens of three short sequences, each by itself: (vocabulary,)."""
    model.set_attn_implementation("eager")
    ids = _token_ids(model)
    lengths = (_FIRST, _FIRST + 1, _NUM_TOKENS)
    return [model(input_ids=ids[None, :length], use_cache=False).logits[0, -1] for length in lengths]


@torch.inference_mode()
def far_logits(model: Any) -> Tensor:
    """Of the last token of a sequence whose tokens stand far apart: (vocabulary,). At neighbouring positions one way of
    embedding positions may differ little from another."""
    model.set_attn_implementation("eager")
    ids = _token_ids(model)[None]
    last = min(context_bound(model.config) or _FARTHEST, _FARTHEST) - 1
    positions = torch.linspace(0, last, _NUM_TOKENS, device=ids.device).long()[None]
    mask = torch.ones_like(ids)  # without one, a gap between positions would mean the next sequence
    logits: Tensor = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
    return logits[0, -1]


@torch.inference_mode()
def packed_logits(model: Any, forward: Forward) -> list[Tensor]:
    """The same as `own_logits`, of a model whose packed attention is switched on."""
    ids = _token_ids(model).tolist()
    short, long = (_sequence(slot, ids[:length]) for slot, length in enumerate((_FIRST, _NUM_TOKENS)))
    first = forward([Piece(short, _FIRST), Piece(long, _SECOND)])
    short.num_cached_tokens, long.num_cached_tokens = _FIRST, _SECOND
    short.token_ids.append(ids[_FIRST])
    second = forward([Piece(short, 1), Piece(long, _NUM_TOKENS - _SECOND)])
    return [*first, *second]


def _sequence(slot: int, token_ids: list[int]) -> Sequence:
    sequence = Sequence((b"", str(slot)), list(token_ids), Sampling(), 0, slot, 0, 1)
    sequence.slot, sequence.pages = slot, [slot]
    return sequence


def _token_ids(model: Any) -> Tensor:
    """Drawn from the whole vocabulary, always the same, none twice."""
    size = model.get_input_embeddings().weight.shape[0]
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:_NUM_TOKENS]
    return drawn.to(model.device)


def _translated(blame: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        return compute()
    except MillraceError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        raise ModelFailure(f"{blame}: {type(error).__name__}: {error}") from error


def difference(logits: Tensor, own: Tensor) -> float:
    """Relative, over all elements."""
    logits, own = logits.float(), own.float()
    return float((logits - own).norm() / own.norm())


def difference_limit(dtype: torch.dtype) -> float:
    """What rounding may explain in the logits of a whole model."""
    return _LIMIT.get(dtype, _LIMIT_HALF)
