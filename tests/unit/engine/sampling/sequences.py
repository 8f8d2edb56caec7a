"""Sequences for tests of sampling, as the engine makes them."""

from core.protocol import Sampling
from engine.generation.sequence import Sequence
from engine.sampling.controls import Constraint, make_controls

END_ID = 1


def sequence(
    sampling: Sampling,
    seed: int = 0,
    *,
    prompt: tuple[int, ...] = (1,),
    answer: tuple[int, ...] = (),
    constraint: Constraint | None = None,
) -> Sequence:
    controls = make_controls(sampling, {END_ID}, len(prompt), constraint)
    made = Sequence((b"", "x"), list(prompt), sampling, 0, 0, seed, 10, controls=controls)
    made.token_ids += answer
    return made
