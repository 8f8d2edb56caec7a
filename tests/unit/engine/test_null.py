"""The model that computes nothing."""

import pytest

from core.errors import ConfigurationError, InvalidRequest
from core.protocol import Delta, Finished, Generate, Sampling, Timing, Usage
from engine.null import NullModel
from engine.runtime import Arrival


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def arrival(request: Generate, at: float = 100.0) -> Arrival:
    return Arrival(b"c", request, at)


def test_it_answers_after_its_delay_with_the_digest_of_the_prompt() -> None:
    # Given a delay of two seconds
    clock = Clock()
    model = NullModel.from_source("null:2", 4)
    model._clock = clock
    model.submit(arrival(Generate("x", "null", text="how are you"), at=99.0))
    # When one second is left, it waits for that
    assert model.wait_seconds() == 1.0
    assert model.step() == []
    # And then it answers
    clock.now = 101.0
    assert model.wait_seconds() == 0.0
    (reply,) = model.step()
    assert reply.message == Finished("x", "1ec4d525f5242a3f", "stop", Usage(3, 1), Timing(0.0, 2.0, 2.0))
    assert model.wait_seconds() is None


def test_the_answer_depends_on_the_prompt_alone_and_not_on_the_order_of_keys() -> None:
    # Given the same message written in two ways, and another message
    model = NullModel.from_source("null:", 4)
    for name, message in (
        ("a", {"role": "user", "content": "hi you"}),
        ("b", {"content": "hi you", "role": "user"}),
        ("c", {"role": "user", "content": "ho"}),
    ):
        model.submit(arrival(Generate(name, "null", messages=[message], sampling=Sampling(seed=hash(name)))))
    # When they are answered
    a, b, c = (reply.message for reply in model.step())
    # Then the first two have one answer
    assert isinstance(a, Finished)
    assert isinstance(b, Finished)
    assert isinstance(c, Finished)
    assert a.text == b.text != c.text
    assert (a.usage.prompt_tokens, c.usage.prompt_tokens) == (2, 1)


def test_a_stream_is_one_delta_and_the_end() -> None:
    model = NullModel.from_source("null:", 4)
    model.submit(arrival(Generate("x", "null", token_ids=[1, 2], stream=True)))
    delta, finished = (reply.message for reply in model.step())
    assert isinstance(delta, Delta)
    assert isinstance(finished, Finished)
    assert (delta.text, delta.num_tokens) == (finished.text, 1)


def test_cancelled_requests_are_not_answered() -> None:
    model = NullModel.from_source("null:", 4)
    for name in ("a", "b"):
        model.submit(arrival(Generate(name, "null", text="x")))
    model.cancel((b"c", "a"))
    assert [reply.key for reply in model.step()] == [(b"c", "b")]
    assert model.wait_seconds() is None


@pytest.mark.parametrize(
    "request_",
    [
        Generate("x", "null"),
        Generate("x", "null", text=""),
        Generate("x", "null", text="y", sampling=Sampling(top_k=-1)),
    ],
)
def test_it_refuses_what_a_real_model_refuses(request_: Generate) -> None:
    with pytest.raises(InvalidRequest):
        NullModel.from_source("null:", 4).submit(arrival(request_))


@pytest.mark.parametrize("source", ["null:x", "null:-1", "null:inf", "null:nan"])
def test_a_delay_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(ConfigurationError, match="null:SECONDS"):
        NullModel.from_source(source, 4)
