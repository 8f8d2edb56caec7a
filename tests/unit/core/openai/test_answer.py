from core.openai.answer import error_body, response_body
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT
from core.protocol import Choice, Finished, Timing, TokenLogprob, TopToken, Usage

ANSWER = Finished("r", "hi", "stop", Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1), Timing(0, 0, 0))
LOGPROBS = [
    TokenLogprob("h", b"h", -0.5, [TopToken("h", b"h", -0.5), TopToken("y", b"y", -1.0)]),
    TokenLogprob("\ufffd", b"\xc3", -0.25),
    TokenLogprob("\ufffd", b"\xa9", -0.125),
    TokenLogprob("!", b"!", -2.0),
]


def test_an_answer_to_a_chat_is_what_openai_sends() -> None:
    # When
    body = response_body(CHAT_ENDPOINT, "batch_1-0", "m", ANSWER, 1700000000)

    # Then
    assert body["id"] == "chatcmpl-batch_1-0"
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 1700000000, "m")
    assert body["choices"] == [
        {
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "hi", "refusal": None},
        }
    ]


def test_an_answer_to_a_text_is_what_openai_sends() -> None:
    body = response_body(TEXT_ENDPOINT, "x", "m", ANSWER, 1)
    assert (body["id"], body["object"]) == ("cmpl-x", "text_completion")
    assert body["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "stop", "text": "hi"}]


def test_usage_adds_up() -> None:
    assert response_body(TEXT_ENDPOINT, "x", "m", ANSWER, 1)["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_an_error_has_openais_four_fields() -> None:
    assert error_body("a_code", "what and what to do", param="model") == {
        "error": {
            "message": "what and what to do",
            "type": "invalid_request_error",
            "param": "model",
            "code": "a_code",
        }
    }


def test_several_answers_are_choices_in_order() -> None:
    # Given
    answer = Finished("r", "one", "stop", ANSWER.usage, ANSWER.timing, more=[Choice("two", "length")])

    # When
    choices = response_body(CHAT_ENDPOINT, "x", "m", answer, 1)["choices"]

    # Then
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, "one"), (1, "two")]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]


def test_log_probabilities_of_a_chat_name_every_token_and_its_rivals() -> None:
    # Given
    answer = Finished("r", "hé!", "stop", ANSWER.usage, ANSWER.timing, logprobs=LOGPROBS)

    # When
    content = response_body(CHAT_ENDPOINT, "x", "m", answer, 1)["choices"][0]["logprobs"]["content"]

    # Then
    assert content[0] == {
        "token": "h",
        "logprob": -0.5,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.5, "bytes": [104]},
            {"token": "y", "logprob": -1.0, "bytes": [121]},
        ],
    }
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == "hé!"


def test_log_probabilities_of_a_text_are_columns() -> None:
    # Given
    answer = Finished("r", "hé!", "stop", ANSWER.usage, ANSWER.timing, logprobs=LOGPROBS)

    # When
    logprobs = response_body(TEXT_ENDPOINT, "x", "m", answer, 1)["choices"][0]["logprobs"]

    # Then
    assert logprobs["token_logprobs"] == [-0.5, -0.25, -0.125, -2.0]
    assert logprobs["top_logprobs"][0] == {"h": -0.5, "y": -1.0}
    assert logprobs["text_offset"] == [0, 1, 1, 2]
    assert logprobs["tokens"][3] == "!"
