"""A generator over a tiny model, driven step by step without process or wire, whose answers are read as token ids."""

from typing import Any

import torch

from core.prompts import PromptCodec
from core.protocol import Delta, Failed, Finished, Generate, Outcome, Sampling
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions, build_generator
from engine.runtime import Arrival
from tests.engine_models import VOCABULARY, number_tokenizer
from tests.polling import until

CLIENT = b"client"
GREEDY = Sampling(temperature=0)
NUM_STEPS_AT_MOST = 5_000


class Harness:
    """num_slots, prefill_tokens, …: as in LoadOptions."""

    def __init__(self, model: Any, codec: PromptCodec | None = None, **options: Any) -> None:
        self.codec = codec or PromptCodec(number_tokenizer(), None)
        self.generator: Generator = build_generator("tiny", model, self.codec, LoadOptions("cpu", **options))
        self.outcomes: dict[str, Outcome] = {}
        self.deltas: dict[str, list[Delta]] = {}

    def submit(
        self, name: str, prompt: list[int], sampling: Sampling, *, priority: int = 0, stream: bool = False
    ) -> None:
        request = Generate(name, "tiny", sampling, token_ids=prompt, priority=priority, stream=stream)
        self.generator.submit(Arrival(CLIENT, request, 0.0))

    def step(self) -> None:
        for reply in self.generator.step():
            if isinstance(reply.message, Delta):
                self.deltas.setdefault(reply.message.id, []).append(reply.message)
            else:
                assert reply.message.id not in self.outcomes, "one outcome per request"
                self.outcomes[reply.message.id] = reply.message

    def run(self) -> None:
        """Until nothing is left to do."""
        for _ in range(NUM_STEPS_AT_MOST):
            until(lambda: self.generator.wait_seconds() in (0.0, None))  # a grammar may be being compiled
            if self.generator.wait_seconds() is None:
                return
            self.step()
        raise AssertionError(f"expected all requests to end, got {sorted(self.outcomes)}")

    def answer(self, name: str) -> list[int]:
        outcome = self.outcomes[name]
        assert isinstance(outcome, Finished), outcome
        return [int(word) for word in outcome.text.split()]

    def failure(self, name: str) -> Failed:
        outcome = self.outcomes[name]
        assert isinstance(outcome, Failed), outcome
        return outcome


@torch.inference_mode()
def own_answer(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """What transformers' `generate` answers greedily to this prompt alone, its end token left out."""
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )
    answer = [int(token) for token in output[0, len(prompt) :]]
    return answer[:-1] if answer[-1] == model.generation_config.eos_token_id else answer


def random_prompt(length: int, seed: int = 0) -> list[int]:
    """Without the end token and the one that fills up batches."""
    generator = torch.Generator().manual_seed(1_000 * seed + length)
    return [int(token) for token in torch.randint(2, VOCABULARY, (length,), generator=generator)]
