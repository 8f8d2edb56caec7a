"""transformers as a peer, by the mode of its setup: `generate` on batches of one or of 32, or its own continuous
batching."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.channel import CONTINUOUS, SERIAL, STATIC, Answer, Setup, Turn, serve

BATCH_SIZES = {STATIC: 32, SERIAL: 1}
RESULT_SECONDS = 1.0
PAGE_TOKENS = 32


@contextmanager
def load(setup: Setup) -> Iterator[Answer]:
    model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype="auto")
    model.eval()
    if setup.mode == CONTINUOUS:
        with continuous(model, setup) as answer:
            yield answer
    else:
        yield batches(model, BATCH_SIZES[setup.mode])


def batches(model: Any, batch_size: int) -> Answer:
    """First come, first served. Every batch runs until its longest answer is done; what the others get beyond their
    own length is thrown away."""

    @torch.inference_mode()
    def answer(turn: Turn) -> int:
        for first in range(0, len(turn.prompts), batch_size):
            prompts = turn.prompts[first : first + batch_size]
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            longest = max(turn.answer_tokens[first : first + batch_size])
            made = model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=0)
            if made.shape[1] != width + longest:
                raise RuntimeError(f"expected {longest} answer tokens, got {made.shape[1] - width}")
        return turn.num_answer_tokens

    return answer


@contextmanager
def continuous(model: Any, setup: Setup) -> Iterator[Answer]:
    """With as large a cache as the work needs: by itself it would take nearly all memory of the machine. Pages of 32
    tokens make it faster than its own 256."""
    pages = setup.num_slots + setup.kv_tokens // PAGE_TOKENS  # one page of each sequence is only partly full
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
    config = ContinuousBatchingConfig(page_size=PAGE_TOKENS, num_blocks=pages, max_requests_per_batch=setup.num_slots)
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=config
    ) as manager:

        def answer(turn: Turn) -> int:
            for prompt, length in zip(turn.prompts, turn.answer_tokens, strict=True):
                manager.add_request(prompt, max_new_tokens=length)
            return sum(_next_length(manager) for _ in turn.prompts)

        yield answer


def _next_length(manager: Any) -> int:
    while (result := manager.get_result(timeout=RESULT_SECONDS)) is None or not result.is_finished():
        if not manager.is_running():
            raise RuntimeError("expected transformers' continuous batching to go on, but its thread has ended")
    if result.error is not None:
        raise RuntimeError(f"expected an answer, got {result.error}")
    return len(result.generated_tokens)


if __name__ == "__main__":
    serve(load)
