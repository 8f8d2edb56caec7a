"""The model that computes nothing."""

import math
import struct
from pathlib import Path

import pytest

from core.errors import ConfigurationError, InvalidRequest
from core.protocol import Delta, Embed, Embedded, Finished, Generate, Sampling, Timing, Usage
from engine.null import NullModel
from engine.runtime import Arrival


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def arrival(request: Generate | Embed, at: float = 100.0) -> Arrival:
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


def test_a_stream_comes_in_pieces_over_the_delay_and_its_answer_is_the_same() -> None:
    # Given two requests that are streamed and one that is not
    now = [0.0]
    model = NullModel(4.0, 4, lambda: now[0])
    for name in ("x", "y"):
        model.submit(arrival(Generate(name, "null", token_ids=[1, 2], stream=True), at=0.0))
    model.submit(arrival(Generate("z", "null", token_ids=[1, 2]), at=0.0))
    # When
    texts: dict[str, list[str]] = {"x": [], "y": [], "z": []}
    for second in (1.0, 2.0, 3.0, 4.0):
        now[0] = second
        assert model.wait_seconds() == 0.0
        replies = [reply.message for reply in model.step()]
        for message in replies:
            if isinstance(message, Delta):
                assert (message.num_tokens, message.prompt_tokens) == (int(second == 1.0), 2)
                texts[message.id].append(message.text)
    # Then
    answers = {message.id: message.text for message in replies if isinstance(message, Finished)}
    assert [len(pieces) for pieces in texts.values()] == [4, 4, 0]
    assert "".join(texts["x"]) == "".join(texts["y"]) == answers["x"] == answers["y"] == answers["z"]
    assert model.wait_seconds() is None


def test_texts_are_embedded_as_numbers_of_length_one_that_depend_on_the_text_alone() -> None:
    # When texts and token ids are embedded
    model = NullModel.from_source("null:", 4)
    model.submit(arrival(Embed("x", "null", texts=["how are you", "fine", "fine"])))
    model.submit(arrival(Embed("y", "null", token_ids=[[1, 2], [2, 1]])))
    texts, ids = (reply.message for reply in model.step())
    # Then equal inputs are equal, others are not, and usage counts words and ids
    assert isinstance(texts, Embedded)
    assert isinstance(ids, Embedded)
    assert texts.embeddings[0] != texts.embeddings[1] == texts.embeddings[2]
    assert len({*texts.embeddings, *ids.embeddings}) == 4
    assert (texts.usage, ids.usage) == (Usage(5, 0), Usage(4, 0))
    for data in texts.embeddings:
        assert math.hypot(*struct.unpack("<8f", data)) == pytest.approx(1.0)


def test_faults_are_named_behind_the_delay() -> None:
    poisoned = NullModel.from_source("null:2!wrong", 4)
    trapped = NullModel.from_source("null:~wrong", 4)
    assert (poisoned._delay_seconds, poisoned._poison, poisoned._trap) == (2.0, b"wrong", b"")
    assert (trapped._delay_seconds, trapped._poison, trapped._trap) == (0.0, b"", b"wrong")


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


def test_its_journal_holds_a_line_for_every_arrival(tmp_path: Path) -> None:
    # Given two models that write to the same file
    path = tmp_path / "journal"
    one, other = (NullModel.from_source(f"null:0.5>{path}", 4) for _ in range(2))
    # When the same prompt arrives at both
    for model in (one, other):
        model.submit(arrival(Generate("x", "null", text="how are you")))
        model.close()
    # Then
    assert path.read_text() == "1ec4d525f5242a3f\n" * 2


def test_a_journal_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="journal"):
        NullModel.from_source(f"null:>{tmp_path}", 4)
