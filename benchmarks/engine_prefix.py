"""What a prefix that is known already spares: time to the first token with the reuse of prefixes and without.

Two workloads, one request after another, so that the time to the first token is prefill and no queueing:
`system_prompt`, 16 requests that share a system prompt of 768 tokens and differ in the last 32; `conversation`, four
conversations of four turns, which open with 256 tokens and go on with 32, each after all that was said before. Both
engines are in this process, share nothing, get the same prompts and make the same number of answer tokens, in turn; the
prompts of every round are new. `prefix_ttft_ratio` is the median time without reuse over the median time with it,
medians of three rounds; the first request of a prefix, which must pay for it, counts as all others do.
`python -m benchmarks.engine_prefix [--quick] [--json] [--rounds N]`; `--quick` is a small model and fewer requests.
"""

import random
import statistics
import sys
from dataclasses import dataclass

from benchmarks.engine_loop import drain, load, submit
from benchmarks.random_model import DEFAULT_SHAPE, SHAPES, token_ids_of
from benchmarks.report import Report, open_report, parse_options, percentile
from benchmarks.workload import random_ids
from engine.generation.generator import Generator
from engine.models.loading import LoadOptions

ROUNDS = 3
SYSTEM_TOKENS, OWN_TOKENS, ANSWER_TOKENS = 768, 32, 8
NUM_TURNS, OPENING_TOKENS, TURN_TOKENS, TURN_ANSWER_TOKENS = 4, 256, 32, 16
QUICK_SHAPE = "10m"
WITH, WITHOUT = "with_reuse", "without_reuse"


@dataclass(frozen=True, slots=True)
class Size:
    shape: str
    num_requests: int
    num_conversations: int


FULL, QUICK = Size(DEFAULT_SHAPE, 16, 4), Size(QUICK_SHAPE, 8, 2)


@dataclass(frozen=True, slots=True)
class Answered:
    ttft_seconds: float
    token_ids: list[int]


def ask(generator: Generator, prompt: list[int], num_answer_tokens: int) -> Answered:
    """Alone: the engine has nothing else to do."""
    submit(generator, "request", prompt, num_answer_tokens)
    (finished,) = drain(generator)
    assert finished.usage.completion_tokens == num_answer_tokens
    return Answered(finished.timing.first_token_seconds, token_ids_of(finished.text))


def system_prompts(count: int, seed: int, vocabulary: int) -> list[list[int]]:
    chance = random.Random(seed)
    system = random_ids(SYSTEM_TOKENS, chance, vocabulary)
    return [system + random_ids(OWN_TOKENS, chance, vocabulary) for _ in range(count)]


def converse(generator: Generator, count: int, seed: int, vocabulary: int) -> tuple[list[list[int]], list[Answered]]:
    """The conversations take turns, so that each must be remembered while the others speak. The prompts that came of
    it, and the answers, in order."""
    chance = random.Random(seed)
    said: list[list[int]] = [[] for _ in range(count)]
    prompts, answers = [], []
    for num_new_tokens in [OPENING_TOKENS] + [TURN_TOKENS] * (NUM_TURNS - 1):
        for number in range(count):
            prompt = said[number] + random_ids(num_new_tokens, chance, vocabulary)
            answer = ask(generator, prompt, TURN_ANSWER_TOKENS)
            said[number] = prompt + answer.token_ids
            prompts.append(prompt)
            answers.append(answer)
    return prompts, answers


def round_of_system_prompts(generators: dict[str, Generator], size: Size, seed: int) -> dict[str, list[Answered]]:
    prompts = system_prompts(size.num_requests, seed, SHAPES[size.shape].vocabulary)
    return {
        name: [ask(generator, prompt, ANSWER_TOKENS) for prompt in prompts] for name, generator in generators.items()
    }


def round_of_conversations(generators: dict[str, Generator], size: Size, seed: int) -> dict[str, list[Answered]]:
    """The engine without reuse is asked what the other one was asked: both read the same tokens."""
    prompts, answers = converse(generators[WITH], size.num_conversations, seed, SHAPES[size.shape].vocabulary)
    again = [ask(generators[WITHOUT], prompt, TURN_ANSWER_TOKENS) for prompt in prompts]
    return {WITH: answers, WITHOUT: again}


WORKLOADS = {"system_prompt": round_of_system_prompts, "conversation": round_of_conversations}


def summarize(name: str, rounds: list[dict[str, list[Answered]]], report: Report) -> None:
    medians = {}
    for engine in (WITH, WITHOUT):
        for percent in (50, 95):
            values = [percentile([done.ttft_seconds for done in each[engine]], percent / 100) for each in rounds]
            medians[engine, percent] = statistics.median(values)
            report.add(f"{name}_ttft_seconds_p{percent}_{engine}", medians[engine, percent], "s")
    pairs = [pair for each in rounds for pair in zip(each[WITH], each[WITHOUT], strict=True)]
    same = sum(one.token_ids == other.token_ids for one, other in pairs) / len(pairs)
    report.add(f"{name}_equal_answers_fraction", same, "of all")
    report.add(f"prefix_ttft_ratio.{name}", medians[WITHOUT, 50] / medians[WITH, 50], "without/with")


def main() -> int:
    options = parse_options(__doc__)
    size = QUICK if options.is_quick else FULL
    num_rounds = options.num_rounds or (1 if options.is_quick else ROUNDS)
    report = open_report(f"Known prefixes, {size.shape}, median of {num_rounds}", options)
    generators = {
        WITH: load(size.shape, LoadOptions("cpu", prefix_reuse=True)),
        WITHOUT: load(size.shape, LoadOptions("cpu", prefix_reuse=False)),
    }
    for generator in generators.values():  # first use of every kernel
        round_of_conversations({WITH: generator, WITHOUT: generator}, QUICK, seed=-1)
    for name, run in WORKLOADS.items():
        summarize(name, [run(generators, size, seed) for seed in range(num_rounds)], report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
