"""The training loop: a Llama of transformers, a rate that rises briefly and then falls in a line to nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from engine.builtin.batches import Batches
from engine.builtin.optimizer import Optimizer
from engine.builtin.recipe import Recipe, Shape
from engine.builtin.schedule import Schedule
from engine.builtin.tokenizer import BOS_ID, EOS_ID, PAD_ID

_REPORT_EVERY_STEPS = 5


@dataclass(frozen=True, slots=True)
class Run:
    num_steps: int
    num_tokens: int
    seconds: float
    loss: float


def new_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """Seeds torch's global generator, which transformers draws the weights from."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.ffn_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.context_tokens,
        tie_word_embeddings=False,
        dtype="float32",
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    return model


def train(
    model: LlamaForCausalLM, batches: Batches, recipe: Recipe, seconds: float, report: Callable[[float, str], None]
) -> Run:
    """`seconds`: about so long at most, unless `recipe.min_steps` take longer.

    `report` gets the part that is done and a line for people.
    """
    optimizer = Optimizer(model, recipe.matrix_rate, recipe.rate)
    schedule = Schedule(recipe.num_steps, recipe.min_steps, seconds)
    model.train()
    began, num_tokens, loss = time.monotonic(), 0, float("nan")
    while not schedule.is_over:
        windows = batches.take(recipe.window_tokens(schedule.progress_fraction))
        loss = _step(model, optimizer, windows, _rate_fraction(schedule, recipe))
        num_tokens += windows[:, 1:].numel()
        schedule.finish_step(time.monotonic() - began)
        if schedule.num_done % _REPORT_EVERY_STEPS == 0 or schedule.is_over:
            report(schedule.progress_fraction, f"step {schedule.num_done}/{schedule.num_planned}, loss {loss:.2f}")
    return Run(schedule.num_done, num_tokens, time.monotonic() - began, loss)


def _step(model: LlamaForCausalLM, optimizer: Optimizer, windows: torch.Tensor, rate_fraction: float) -> float:
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step(rate_fraction)
    return loss.item()


def _rate_fraction(schedule: Schedule, recipe: Recipe) -> float:
    return min(1.0, (schedule.num_done + 1) / recipe.num_warmup_steps) * (1.0 - schedule.progress_fraction)
