"""The step loop over a tiny model: sampling, stops, limits, streams, and requests that go wrong and harm no other."""

from typing import Any

import pytest
import torch

from core.errors import ContextLengthExceeded, InvalidRequest
from core.prompts import PromptCodec
from core.protocol import Generate, Sampling
from engine.generation.flights import DeviceLost
from engine.runtime import Arrival
from tests.engine_harness import CLIENT, Harness, own_answer, random_prompt
from tests.engine_models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.poisoned_models import POISON, explode, poisoned, spoil

CLEAN = [token for token in range(2, 60) if token != POISON]


@pytest.fixture
def harness() -> Harness:
    return Harness(tiny_model("llama"), num_slots=4, prefill_tokens=32)


def greedy(num_tokens: int, **more: Any) -> Sampling:
    return Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True, **more)


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.8}, {"top_k": 20}, {"top_k": 50, "top_p": 0.9}])
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(sampling: dict[str, Any]) -> None:
    # Given what a seeded request answers alone
    seeded = Sampling(max_tokens=40, temperature=0.9, seed=1234, ignore_eos=True, **sampling)
    alone = Harness(tiny_model("llama"), num_slots=1)
    alone.submit("seeded", random_prompt(45), seeded)
    alone.run()
    # When it runs among others, some of which have the same seed, in pieces, and gives way once
    crowd = Harness(tiny_model("llama"), num_slots=3, prefill_tokens=16)
    for name in ("other", "seeded", "more"):
        crowd.submit(name, random_prompt(45, seed=0 if name == "seeded" else 3), seeded)
    for _ in range(20):
        crowd.step()
    for number in range(2):
        crowd.submit(f"urgent {number}", random_prompt(9), greedy(5), priority=10)
    crowd.run()
    # Then its tokens are the same, and those of another prompt are not
    assert crowd.answer("seeded") == alone.answer("seeded")
    assert crowd.answer("more") != alone.answer("seeded")
    assert len(set(alone.answer("seeded"))) >= 16


def test_requests_without_a_seed_differ(harness: Harness) -> None:
    for name in ("one", "two"):
        harness.submit(name, random_prompt(5), Sampling(max_tokens=30, ignore_eos=True))
    harness.run()
    assert harness.answer("one") != harness.answer("two")


def test_different_seeds_differ(harness: Harness) -> None:
    for seed in (1, 2):
        harness.submit(str(seed), random_prompt(5), Sampling(max_tokens=30, ignore_eos=True, seed=seed))
    harness.run()
    assert harness.answer("1") != harness.answer("2")


def test_a_stop_string_that_spans_tokens_ends_the_answer_before_it(harness: Harness) -> None:
    # Given the words that the model answers
    words = [str(token) for token in own_answer(tiny_model("llama"), random_prompt(6), 30)]
    text = " ".join(words)
    stop = f"{words[9][-1]} {words[10]} {words[11][:1]}"
    # When a request stops at the end of one word, the next, and the beginning of a third
    harness.submit("stopped", random_prompt(6), greedy(30, stop=(stop, "never")), stream=True)
    harness.submit("free", random_prompt(6), greedy(30))
    harness.run()
    # Then the answer and its deltas end before it
    stopped, free = harness.outcomes["stopped"], harness.outcomes["free"]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")  # type: ignore[union-attr]
    assert "".join(delta.text for delta in harness.deltas["stopped"]) == stopped.text  # type: ignore[union-attr]
    assert (free.text, free.finish_reason) == (text, "length")  # type: ignore[union-attr]


def test_deltas_are_whole_characters_and_make_up_the_final_text() -> None:
    # Given a model over bytes, whose random answers cut characters anywhere
    harness = Harness(tiny_model("llama"), PromptCodec(tiny_tokenizer(), None), num_slots=4)
    for seed in range(4):
        harness.submit(str(seed), random_prompt(5), Sampling(max_tokens=120, ignore_eos=True, seed=seed), stream=True)
        harness.submit(f"{seed} at once", random_prompt(5), Sampling(max_tokens=120, ignore_eos=True, seed=seed))
    # When they are streamed
    harness.run()
    # Then the deltas are the text of the same request without a stream, and account for every token that shows
    for seed in range(4):
        deltas, finished = harness.deltas[str(seed)], harness.outcomes[str(seed)]
        assert "".join(delta.text for delta in deltas) == harness.outcomes[f"{seed} at once"].text  # type: ignore[union-attr]
        assert "".join(delta.text for delta in deltas) == finished.text  # type: ignore[union-attr]
        assert sum(delta.num_tokens for delta in deltas) <= 120
        assert len(deltas) > 10


def test_an_answer_is_clipped_to_the_context(harness: Harness) -> None:
    # Given a context of 512 tokens and prompts that fit while their answers do not
    harness.submit("long", random_prompt(500), greedy(100))
    harness.submit("endless", random_prompt(490), Sampling(temperature=0, ignore_eos=True))
    harness.run()
    # Then they end where the context does
    assert len(harness.answer("long")) == 12
    assert len(harness.answer("endless")) == 22
    assert harness.outcomes["long"].finish_reason == "length"  # type: ignore[union-attr]
    assert harness.answer("long") == own_answer(tiny_model("llama", eos_token_id=None), random_prompt(500), 12)


def test_a_prompt_longer_than_the_context_is_refused_and_leaves_nothing(harness: Harness) -> None:
    with pytest.raises(ContextLengthExceeded, match="512 tokens"):
        harness.submit("too long", random_prompt(512), greedy(1))
    assert harness.generator.wait_seconds() is None


@pytest.mark.parametrize("token_ids", [[-1], [VOCABULARY]])
def test_a_token_that_the_model_does_not_have_is_refused(harness: Harness, token_ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="token_ids"):
        harness.submit("foreign", token_ids, greedy(1))


def test_a_prompt_in_no_form_or_two_forms_is_refused(harness: Harness) -> None:
    for request in (Generate("none", "tiny"), Generate("two", "tiny", text="1", token_ids=[1])):
        with pytest.raises(InvalidRequest, match="expected one of messages, text or token_ids"):
            harness.generator.submit(Arrival(CLIENT, request, 0.0))


def test_a_cancelled_request_says_nothing_more_and_frees_its_slot(harness: Harness) -> None:
    # Given a running, a waiting, and a finished-to-be request
    harness.submit("running", random_prompt(5), greedy(200))
    harness.submit("other", random_prompt(6), greedy(20))
    harness.step()
    harness.submit("waiting", random_prompt(5), greedy(200))
    # When two are cancelled
    spent = [harness.generator.cancel((CLIENT, name)) for name in ("running", "waiting", "unknown")]
    harness.run()
    # Then only the third speaks, and it is right
    assert spent[0] is not None
    assert (spent[0].prompt_tokens, spent[1:]) == (5, [None, None]), "what had begun says what it has used"
    assert spent[0].completion_tokens >= 1
    assert set(harness.outcomes) == {"other"}
    assert harness.answer("other") == own_answer(tiny_model("llama", eos_token_id=None), random_prompt(6), 20)
    assert harness.generator.gauges().num_running == 0


@pytest.mark.parametrize(("harm", "message"), [(explode, "a kernel failed"), (spoil, "NaN")])
def test_a_request_that_breaks_a_step_fails_alone(harm: Any, message: str) -> None:
    # Given a model that fails on one token, and requests of which two hold it, one deep in its prompt
    harness = poisoned(harm, num_slots=4, prefill_tokens=16)
    prompts = {
        "good": CLEAN[:20],
        "bad": [*CLEAN[:3], POISON, 9],
        "deep": [*CLEAN[:40], POISON, 5],
        "late": CLEAN[5:11],
    }
    for name, prompt in prompts.items():
        harness.submit(name, prompt, greedy(15))
        harness.step()
    # When they run, and later ones take over the slots
    harness.run()
    for number in range(6):
        harness.submit(f"after {number}", CLEAN[number : number + 9], greedy(15))
    harness.run()
    # Then these two fail with the reason, and every other answer is the model's own
    assert message in harness.failure("bad").message
    assert message in harness.failure("deep").message
    assert harness.failure("bad").code == "model_failure"
    reference = tiny_model("llama", eos_token_id=None)
    expected = {name: own_answer(reference, prompts[name], 15) for name in ("good", "late")}
    expected |= {f"after {number}": own_answer(reference, CLEAN[number : number + 9], 15) for number in range(6)}
    clean = {name: answer for name, answer in expected.items() if POISON not in answer}
    assert len(clean) >= 4
    assert {name: harness.answer(name) for name in clean} == clean


def test_a_device_that_answers_nothing_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a step that fails and a device that fails its health check too
    broken = poisoned(explode, num_slots=2, prefill_tokens=16)
    monkeypatch.setattr(broken.generator._runner, "is_device_alive", lambda: False)
    broken.submit("bad", [POISON, 3], greedy(5))
    # When it is stepped, only a new process can help
    with pytest.raises(DeviceLost, match="must restart"):
        broken.step()


def test_memory_that_cannot_be_had_fails_the_running_requests_as_retryable(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two requests, and a grid that cannot be shaped once
    def refuse(*_: object) -> None:
        monkeypatch.undo()
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(harness.generator._runner, "prepare", refuse)
    for name in ("one", "two"):
        harness.submit(name, random_prompt(8), greedy(5))
    # When they run, and another comes after them
    harness.step()
    harness.submit("three", random_prompt(8), greedy(5))
    harness.run()
    # Then the two may come again, and the third is answered
    assert [harness.failure(name).code for name in ("one", "two")] == ["overloaded", "overloaded"]
    assert harness.failure("one").is_retryable
    assert len(harness.answer("three")) == 5


def test_usage_timing_and_gauges_count_what_happened() -> None:
    # Given a clock that advances by a second at every look
    harness = Harness(tiny_model("llama"), num_slots=2, prefill_tokens=8)
    ticks = iter(range(1, 10_000))
    harness.generator._clock = lambda: float(next(ticks))
    # When a prompt of 20 tokens is answered with 5
    harness.submit("counted", random_prompt(20), greedy(5))
    harness.run()
    # Then usage is exact, and the times are in order
    finished = harness.outcomes["counted"]
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (20, 5)  # type: ignore[union-attr]
    timing = finished.timing  # type: ignore[union-attr]
    assert 0 < timing.queue_seconds < timing.first_token_seconds < timing.total_seconds
    gauges = harness.generator.gauges()
    assert (gauges.num_steps_total, gauges.prompt_tokens_total, gauges.completion_tokens_total) == (7, 20, 5)
    assert gauges.step_seconds_total > 0


@pytest.mark.parametrize("native", [True, False])
def test_a_row_that_held_a_nan_harms_nobody_who_comes_to_its_place(native: bool) -> None:
    # Given a model that gives NaN for one token, two rows, and a long prompt with it, which fails
    model = tiny_model("llama")
    harness = Harness(model, num_slots=2, native=native, prefix_reuse=False)
    model.get_input_embeddings().register_forward_hook(lambda _, arguments, output: spoil(arguments[0], output))
    harness.submit("bad", [*CLEAN[:40], POISON], greedy(5))
    harness.run()
    # When two that are shorter take the rows
    harness.submit("one", CLEAN[:9], greedy(15))
    harness.submit("two", CLEAN[3:25], greedy(15))
    harness.run()
    # Then they are right
    assert "NaN" in harness.failure("bad").message
    reference = tiny_model("llama", eos_token_id=None)
    answers = {"one": own_answer(reference, CLEAN[:9], 15), "two": own_answer(reference, CLEAN[3:25], 15)}
    assert all(POISON not in answer for answer in answers.values())
    assert {name: harness.answer(name) for name in answers} == answers
