"""Every figure of the training of `millrace/tiny`, with its reason.

Measured on two cores of an AMD EPYC with 400 to 500 steps of 1,024 tokens, as parts of the unigram perplexity: AdamW
alone ends at 0.18, orthogonalised momentum (`optimizer`) at 0.13, with windows that grow from 64 to 1,024 tokens at
0.12, with an output matrix of its own at 0.11.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of 0.93 M parameters. Head size 32; no grouped queries, which save nothing at this size."""

    vocab_size: int = 2048
    width: int = 128
    num_layers: int = 2
    num_heads: int = 4
    ffn_width: int = 352
    context_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class Stage:
    """From this part of the schedule on, windows have this length. Short ones teach words first and cost less."""

    from_fraction: float
    window_tokens: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """num_steps: fixed, so that the same machine makes the same model; fewer where `seconds_limit` would be missed.
    min_steps: done even then, because the model stays for good and has to have learned something.

    step_tokens: tokens of one step; every window length divides it.
    matrix_rate, rate: peak learning rates of the inner matrices and of everything else.
    chat_fraction: part of the documents that is wrapped as question and answer.
    """

    shape: Shape = Shape()
    num_steps: int = 400
    min_steps: int = 150
    seconds_limit: float = 60.0
    step_tokens: int = 1024
    stages: tuple[Stage, ...] = (Stage(0.0, 64), Stage(0.25, 128), Stage(0.5, 256), Stage(0.85, 1024))
    matrix_rate: float = 0.02
    rate: float = 0.01
    num_warmup_steps: int = 40
    chat_fraction: float = 0.5
    num_threads: int = 4  # more only wait for each other on matrices this small
    seed: int = 0

    def window_tokens(self, progress_fraction: float) -> int:
        return [stage for stage in self.stages if stage.from_fraction <= progress_fraction][-1].window_tokens
