"""The proof that a loaded model may be served: packed, its logits are those of its own forward pass.

Two short sequences go through the packed path side by side: one prompt whole, one in two pieces, one decoding while the
other prefills. A model whose code does something that the packed path does not know fails here with a sentence, and
not in somebody's answers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import MillraceError, ModelFailure
from core.protocol import Sampling
from engine.generation.grid_attention import ATTENTION_NAME
from engine.generation.packing import pack
from engine.generation.runner import Runner
from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.kv.grid import KvGrid

_NUM_TOKENS = 8
_FIRST, _SECOND = 3, 4  # tokens of the one prompt, and of the first piece of the other
_LIMIT = {torch.float32: 0.01}
_LIMIT_HALF = 0.15  # relative; a wrong mask or position gives about 1


def probe(name: str, model: Any, runner: Runner, grid: KvGrid) -> None:
    """Raises ModelFailure. Leaves the model with the packed attention switched on."""
    own = _translated(f"{name} fails in its own forward pass", lambda: _own_logits(model))
    model.set_attn_implementation(ATTENTION_NAME)
    packed = _translated(f"{name} does not run in packed form", lambda: _packed_logits(model, runner, grid))
    worst = max(_difference(*pair) for pair in zip(packed, own, strict=True))
    if not worst <= _LIMIT.get(model.dtype, _LIMIT_HALF):  # NaN fails too
        raise ModelFailure(
            f"{name} gives other logits in packed form than by itself (relative difference {worst:.2g}); "
            "its attention does something that this engine does not know, or its weights are damaged"
        )


@torch.inference_mode()
def _own_logits(model: Any) -> list[Tensor]:
    model.set_attn_implementation("eager")
    ids = _token_ids(model)
    lengths = (_FIRST, _FIRST + 1, _NUM_TOKENS)
    return [model(input_ids=ids[None, :length], use_cache=False).logits[0, -1] for length in lengths]


@torch.inference_mode()
def _packed_logits(model: Any, runner: Runner, grid: KvGrid) -> list[Tensor]:
    device, ids = runner.device, _token_ids(model).tolist()
    short, long = (_sequence(slot, ids[:length]) for slot, length in enumerate((_FIRST, _NUM_TOKENS)))
    first = runner.forward(pack([Piece(short, _FIRST), Piece(long, _SECOND)], grid, device))
    short.num_cached_tokens, long.num_cached_tokens = _FIRST, _SECOND
    short.token_ids.append(ids[_FIRST])
    second = runner.forward(pack([Piece(short, 1), Piece(long, _NUM_TOKENS - _SECOND)], grid, device))
    return [*first, *second]


def _sequence(slot: int, token_ids: list[int]) -> Sequence:
    sequence = Sequence((b"", str(slot)), list(token_ids), Sampling(), 0, slot, 0, 1)
    sequence.slot = slot
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


def _difference(packed: Tensor, own: Tensor) -> float:
    packed, own = packed.float(), own.float()
    return float((packed - own).norm() / own.norm())
