"""Steps launched before the tokens of the last one are read: the answers are those of a runner that waits."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from core.protocol import Sampling
from engine.generation.execution import Launch, Sampled, StepRunner
from engine.generation.flights import DeviceLost, Flights
from engine.generation.scheduler import Piece, Step
from engine.generation.sequence import PENDING, Sequence
from tests.engine_harness import CLIENT, Harness, own_answer, random_prompt
from tests.engine_models import tiny_model
from tests.poisoned_models import POISON, explode, poisoned, spoil

CLEAN = [token for token in range(2, 60) if token != POISON]
BYTES_PER_TOKEN = 3 * 2 * 2 * 12 * 4  # of the tiny Llama


@dataclass
class LateLaunch:
    """What was computed at once, and is told when it is asked for."""

    runner: "DelayedRunner"
    number: int
    sampled: list[Sampled]
    error: Exception | None

    def result(self) -> list[Sampled]:
        self.runner.events.append(("read", self.number))
        if self.error is not None:
            raise self.error
        return self.sampled


@dataclass
class DelayedRunner:
    """The grid's runner as a device that works by itself: it keeps the tokens of its last launch, and hands them out
    when they are asked for. fails_late: an error shows when the tokens are read, not at the launch."""

    runner: StepRunner
    num_ahead: int = 1
    fails_late: bool = False
    events: list[tuple[str, int]] = field(default_factory=list)
    launched: list[list[tuple[Sequence, int, bool]]] = field(default_factory=list)  # with tokens, and if one is pending
    newest: dict[Sequence, int] = field(default_factory=dict)

    def prepare(self, step: Step) -> None:
        self.runner.prepare(step)

    def launch(self, pieces: list[Piece]) -> Launch:
        number = len(self.launched)
        self.events.append(("launch", number))
        pending = [piece.sequence for piece in pieces if piece.sequence.is_pending]
        self.launched.append([(piece.sequence, piece.num_tokens, piece.sequence in pending) for piece in pieces])
        assert all(piece.num_tokens == 1 for piece in pieces if piece.sequence.is_pending)
        for sequence in pending:
            sequence.token_ids[-1] = self.newest[sequence]
        try:
            sampled = self.runner.launch(pieces).result()
        except Exception as error:
            if not self.fails_late:
                raise
            self.newest = {piece.sequence: 0 for piece in pieces if piece.is_last}  # what a device has there then
            return LateLaunch(self, number, [], error)
        finally:
            for sequence in pending:
                sequence.token_ids[-1] = PENDING
        self.newest = {one.sequence: max(0, one.token_id) for one in sampled}
        return LateLaunch(self, number, sampled, None)

    def wipe(self, sequence: Sequence) -> None:
        self.runner.wipe(sequence)

    def drop_kv(self) -> None:
        self.runner.drop_kv()

    def is_device_alive(self) -> bool:
        return self.runner.is_device_alive()

    def close(self) -> None:
        self.runner.close()


def ahead(harness: Harness, *, fails_late: bool = False) -> DelayedRunner:
    runner = DelayedRunner(harness.generator._runner, fails_late=fails_late)
    harness.generator._runner = runner
    harness.generator._flights = Flights(runner)
    return runner


def greedy(num_tokens: int, **more: Any) -> Sampling:
    return Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True, **more)


def expected(prompt: list[int], num_tokens: int) -> list[int]:
    return own_answer(tiny_model("llama", eos_token_id=None), prompt, num_tokens)


def play(harness: Harness, seed: int) -> dict[str, Any]:
    """Random requests at random times, some cancelled; what came of those that were not."""
    chance = random.Random(seed)
    cancelled: list[str] = []
    for number in range(16):
        name = str(number)
        sampling = Sampling(
            max_tokens=chance.randint(1, 40),
            temperature=chance.choice((0.0, 0.9)),
            seed=number,
            ignore_eos=chance.random() < 0.5,
            stop=chance.choice(((), (" 1", "2 "), (str(chance.randint(2, 320)),))),
            repetition_penalty=chance.choice((1.0, 1.0, 1.0, 1.3)),
        )
        priority = chance.choice((0, 0, 0, 10))
        prompt = random_prompt(chance.choice((1, 5, 30, 150, 250)), seed=number % 5)
        harness.submit(name, prompt, sampling, priority=priority, stream=chance.random() < 0.5)
        for _ in range(chance.randint(0, 6)):
            harness.step()
        if chance.random() < 0.25:
            victim = str(chance.randint(0, number))
            harness.generator.cancel((CLIENT, victim))
            cancelled.append(victim)
    harness.run()
    outcomes = {name: outcome for name, outcome in harness.outcomes.items() if name not in cancelled}
    return {name: (o.text, o.finish_reason, o.usage.completion_tokens) for name, o in outcomes.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_a_runner_that_waits(seed: int) -> None:
    # Given the same random arrivals, cancels, stop strings and penalties, and K/V so few that sequences give way
    kv_bytes = (560 + 20 * seed) * BYTES_PER_TOKEN
    waiting, hurrying = (
        Harness(tiny_model("llama"), num_slots=3 + seed % 3, prefill_tokens=64, kv_bytes=kv_bytes) for _ in range(2)
    )
    runner = ahead(hurrying)
    # When one engine waits for every token and the other does not
    waited, hurried = play(waiting, seed), play(hurrying, seed)
    # Then what came of them is the same, and there was something to be ahead of
    assert hurried == waited
    assert len(waited) > 8
    assert sum(is_pending for launch in runner.launched for _, _, is_pending in launch) > 50


@pytest.mark.parametrize("seed", range(3))
def test_answers_on_pages_are_those_on_rows(seed: int) -> None:
    # Given the same random requests, and pages for two contexts
    rows = Harness(tiny_model("llama"), num_slots=4, prefill_tokens=64)
    pages = Harness(
        tiny_model("llama"), num_slots=4, prefill_tokens=64, kv="pages", num_ahead=1, kv_bytes=600 * BYTES_PER_TOKEN
    )
    # When one engine computes on rows and waits, and the other on pages and does not
    on_rows, on_pages = play(rows, seed), play(pages, seed)
    # Then what came of them is the same
    assert on_pages == on_rows
    assert len(on_rows) > 8


def test_a_sequence_that_gives_way_while_its_token_is_pending_resumes_where_it_was() -> None:
    # Given K/V for two rows of 256 columns, and sequences that outgrow them
    harness = Harness(tiny_model("llama"), num_slots=4, prefill_tokens=64, kv_bytes=640 * BYTES_PER_TOKEN)
    runner = ahead(harness)
    prompts = [random_prompt(length, seed=5) for length in (200, 10, 180, 230)]
    # When they run
    for index, prompt in enumerate(prompts):
        harness.submit(str(index), prompt, greedy(90))
    harness.run()
    # Then some gave way, and nothing is lost and nothing is wrong
    assert harness.generator._scheduler.num_preemptions_total > 0
    assert [harness.answer(str(index)) for index in range(4)] == [expected(prompt, 90) for prompt in prompts]
    assert sum(is_pending for launch in runner.launched for _, _, is_pending in launch) > 200


def test_a_step_is_launched_before_the_tokens_of_the_last_one_are_read() -> None:
    # Given a request for four tokens
    harness = Harness(tiny_model("llama"))
    runner = ahead(harness)
    harness.submit("one", random_prompt(5), greedy(4))
    # When it runs
    harness.run()
    # Then every launch but the first comes before the read of the one before, and there is none too many
    assert runner.events == [
        ("launch", 0),
        ("launch", 1),
        ("read", 0),
        ("launch", 2),
        ("read", 1),
        ("launch", 3),
        ("read", 2),
        ("read", 3),
    ]
    assert harness.answer("one") == expected(random_prompt(5), 4)


def test_a_stop_found_one_step_late_drops_the_token_computed_meanwhile() -> None:
    # Given a stop string that is the ninth token
    answer = expected(random_prompt(6), 20)
    harness = Harness(tiny_model("llama"))
    runner = ahead(harness)
    # When a request stops there, beside one that goes on
    harness.submit("stopped", random_prompt(6), greedy(20, stop=(f" {answer[8]}",)))
    harness.submit("free", random_prompt(6), greedy(20))
    harness.run()
    # Then ten tokens were computed for it and nine count
    stopped = harness.outcomes["stopped"]
    assert (harness.answer("stopped"), stopped.usage.completion_tokens) == (answer[:8], 9)  # type: ignore[union-attr]
    assert sum(s.key[1] == "stopped" for launch in runner.launched for s, _, _ in launch) == 10
    assert harness.answer("free") == answer


def test_a_sequence_whose_next_token_depends_on_the_last_is_never_ahead() -> None:
    # Given a request with a penalty beside one without
    harness = Harness(tiny_model("llama"))
    runner = ahead(harness)
    harness.submit("penalised", random_prompt(6), greedy(8, frequency_penalty=1.0))
    harness.submit("plain", random_prompt(7), greedy(16))
    # When they run
    harness.run()
    # Then nothing is launched ahead until the first has ended, and then everything is
    pending = [any(is_pending for _, _, is_pending in launch) for launch in runner.launched]
    assert pending == [False] * 9 + [True] * 7
    assert harness.answer("plain") == expected(random_prompt(7), 16)


def test_a_cancelled_request_may_come_again_at_once_under_its_name() -> None:
    # Given a request whose token is pending
    harness = Harness(tiny_model("llama"), num_slots=2)
    ahead(harness)
    harness.submit("again", random_prompt(6), greedy(30))
    for _ in range(3):
        harness.step()
    # When it is cancelled and comes again with another prompt
    harness.generator.cancel((CLIENT, "again"))
    harness.submit("again", random_prompt(9), greedy(5))
    harness.run()
    # Then nothing of the old one is in the new answer
    assert harness.answer("again") == expected(random_prompt(9), 5)
    assert harness.generator.gauges().num_running == 0


@pytest.mark.parametrize(
    ("harm", "fails_late", "message"),
    [(explode, False, "a kernel failed"), (explode, True, "a kernel failed"), (spoil, False, "NaN")],
    ids=["fails at the launch", "fails when it is read", "gives NaN"],
)
def test_a_request_that_breaks_a_step_fails_alone(harm: Any, fails_late: bool, message: str) -> None:
    # Given a model that fails on one token, and requests of which two hold it, one deep in its prompt
    harness = poisoned(harm, num_slots=4, prefill_tokens=16)
    runner = ahead(harness, fails_late=fails_late)
    prompts = {
        "good": CLEAN[:20],
        "bad": [*CLEAN[:3], POISON, 9],
        "deep": [*CLEAN[:40], POISON, 5],
        "late": CLEAN[5:11],
    }
    for name, prompt in prompts.items():
        harness.submit(name, prompt, greedy(15))
        harness.step()
    # When they run, and others come later
    harness.run()
    num_launched = len(runner.launched)
    for number in range(6):
        harness.submit(f"after {number}", CLEAN[number : number + 9], greedy(15))
    harness.run()
    # Then these two fail with the reason, and every other answer is the model's own
    assert message in harness.failure("bad").message
    assert message in harness.failure("deep").message
    prompts |= {f"after {number}": CLEAN[number : number + 9] for number in range(6)}
    answers = {name: expected(prompt, 15) for name, prompt in prompts.items() if POISON not in prompt}
    clean = {name: answer for name, answer in answers.items() if POISON not in answer}
    assert len(clean) >= 4
    assert {name: harness.answer(name) for name in clean} == clean
    # And steps are launched ahead again
    assert any(is_pending for launch in runner.launched[num_launched:] for _, _, is_pending in launch)


def test_a_device_that_answers_nothing_when_it_is_read_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a step that fails late, on a device that fails its health check too
    harness = poisoned(explode, num_slots=2)
    runner = ahead(harness, fails_late=True)
    monkeypatch.setattr(runner, "is_device_alive", lambda: False)
    harness.submit("bad", [POISON, 3], greedy(5))
    # When it is stepped, only a new process can help
    with pytest.raises(DeviceLost, match="must restart"):
        harness.run()


def scarce(ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """Memory for 24 tokens at once, and for none where POISON is."""
    if ids.shape[1] > 24 or POISON in ids.tolist()[0]:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return embedded


@pytest.mark.parametrize("is_ahead", [False, True])
def test_where_memory_is_short_a_prompt_is_tried_in_halves_and_fails_alone(is_ahead: bool) -> None:
    # Given memory for 24 tokens a step and prompts of 40, one of which asks for more than there is
    harness = poisoned(scarce, num_slots=4, prefill_tokens=64)
    if is_ahead:
        ahead(harness)
    harness.submit("long", CLEAN[:40], greedy(9))
    harness.submit("greedy", [*CLEAN[:30], POISON], greedy(9))
    harness.submit("short", CLEAN[5:11], greedy(9))
    # When they run
    harness.run()
    # Then the one fails, alone as it ran, and the others are right
    failure = harness.failure("greedy")
    assert (failure.code, failure.is_retryable) == ("model_failure", False)
    assert "out of memory" in failure.message
    assert harness.answer("long") == expected(CLEAN[:40], 9)
    assert harness.answer("short") == expected(CLEAN[5:11], 9)
