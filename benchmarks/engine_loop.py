"""A generator driven in this process, step by step, without a wire: requests of token ids in, outcomes out."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.channel import Turn
from benchmarks.random_model import SHAPES, random_model, save_tokenizer
from core.prompts import PromptCodec
from core.protocol import BULK_PRIORITY, Failed, Finished, Generate, Sampling
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions, build_generator
from engine.runtime import Arrival, Reply

CLIENT = b"benchmark"
MODEL = "random"


def load(shape: str, options: LoadOptions) -> Generator:
    """A model with random weights of its own."""
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(Path(directory), SHAPES[shape].vocabulary)
        codec = PromptCodec.load(Path(directory))
    return build_generator(MODEL, random_model(shape=shape), codec, options)


def submit(
    generator: Generator,
    name: str,
    prompt: Sequence[int],
    num_answer_tokens: int,
    *,
    priority: int = BULK_PRIORITY,
    stream: bool = False,
) -> None:
    """Greedy, and with exactly so many answer tokens."""
    sampling = Sampling(max_tokens=num_answer_tokens, temperature=0, ignore_eos=True)
    request = Generate(name, MODEL, sampling, token_ids=list(prompt), priority=priority, stream=stream)
    generator.submit(Arrival(CLIENT, request, time.monotonic()))


def outcomes(replies: Sequence[Reply]) -> list[Finished]:
    """Raises RuntimeError where a request failed."""
    messages = [reply.message for reply in replies]
    if failures := [message for message in messages if isinstance(message, Failed)]:
        raise RuntimeError(f"expected an answer to every request, got {failures[0]}")
    return [message for message in messages if isinstance(message, Finished)]


def drain(generator: Generator) -> list[Finished]:
    """Steps until nothing is left to do."""
    finished: list[Finished] = []
    while generator.wait_seconds() is not None:
        finished += outcomes(generator.step())
    return finished


def answer_all(generator: Generator, turn: Turn) -> list[Finished]:
    for number, (prompt, length) in enumerate(zip(turn.prompts, turn.answer_tokens, strict=True)):
        submit(generator, str(number), prompt, length)
    return drain(generator)
