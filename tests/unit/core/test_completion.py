import json
from typing import Any

import pytest

from core.completion import CHAT_ENDPOINT, TEXT_ENDPOINT, error_body, parse_body, response_body
from core.errors import InvalidRequest, Unsupported
from core.protocol import Finished, Sampling, Timing, Usage

HELLO = [{"role": "user", "content": "hello"}]
ANSWER = Finished("r", "hi", "stop", Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1), Timing(0, 0, 0))


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO, **fields}).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hello", **fields}).encode()


def refused(endpoint: str, body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(endpoint, body)
    return caught.value


class TestChat:
    def test_the_least_body_gives_openais_defaults(self) -> None:
        # When
        request = parse_body(CHAT_ENDPOINT, chat())

        # Then
        assert (request.model, request.messages, request.text, request.token_ids) == ("m", HELLO, None, None)
        assert request.sampling == Sampling(max_tokens=None, temperature=1.0, top_p=1.0)

    def test_every_sampling_parameter_is_taken_over(self) -> None:
        # Given
        body = chat(max_tokens=7, temperature=0, top_p=0.5, top_k=4, seed=3, stop=["a", "", "b"], ignore_eos=True)

        # Then
        assert parse_body(CHAT_ENDPOINT, body).sampling == Sampling(
            max_tokens=7, temperature=0.0, top_p=0.5, top_k=4, seed=3, stop=("a", "b"), ignore_eos=True
        )

    def test_the_newer_name_of_max_tokens_wins(self) -> None:
        body = chat(max_tokens=7, max_completion_tokens=9)
        assert parse_body(CHAT_ENDPOINT, body).sampling.max_tokens == 9

    def test_vllms_minus_one_switches_top_k_off(self) -> None:
        assert parse_body(CHAT_ENDPOINT, chat(top_k=-1)).sampling.top_k == 0

    def test_a_single_stop_string_is_a_list_of_one(self) -> None:
        assert parse_body(CHAT_ENDPOINT, chat(stop="end")).sampling.stop == ("end",)

    def test_fields_that_change_nothing_about_the_answer_are_accepted(self) -> None:
        parse_body(CHAT_ENDPOINT, chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", anything=1))

    @pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
    def test_every_role_of_openai_is_known(self, role: str) -> None:
        parse_body(CHAT_ENDPOINT, chat(messages=[{"role": role, "content": "x"}]))

    def test_content_may_be_a_list_of_parts_and_an_assistants_may_be_missing(self) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant"}]
        assert parse_body(CHAT_ENDPOINT, chat(messages=messages)).messages == messages

    @pytest.mark.parametrize(
        ("message", "param"),
        [
            ({"content": "x"}, "messages[1].role"),
            ({"role": "wizard", "content": "x"}, "messages[1].role"),
            ({"role": "user"}, "messages[1].content"),
            ({"role": "user", "content": 7}, "messages[1].content"),
        ],
    )
    def test_a_wrong_message_is_refused_by_its_place(self, message: dict[str, Any], param: str) -> None:
        assert refused(CHAT_ENDPOINT, chat(messages=[*HELLO, message])).param == param

    def test_a_conversation_needs_a_message(self) -> None:
        assert refused(CHAT_ENDPOINT, chat(messages=[])).param == "messages"


class TestText:
    def test_the_default_length_is_openais(self) -> None:
        request = parse_body(TEXT_ENDPOINT, text())
        assert (request.text, request.messages, request.sampling.max_tokens) == ("hello", None, 16)

    def test_a_list_of_one_text_is_that_text(self) -> None:
        assert parse_body(TEXT_ENDPOINT, text(prompt=["hello"])).text == "hello"

    def test_a_list_of_numbers_is_tokens(self) -> None:
        assert parse_body(TEXT_ENDPOINT, text(prompt=[1, 2, 3])).token_ids == [1, 2, 3]

    @pytest.mark.parametrize("prompt", [[], ["a", "b"], [1, "a"]])
    def test_anything_but_one_prompt_is_refused(self, prompt: list[Any]) -> None:
        error = refused(TEXT_ENDPOINT, text(prompt=prompt))
        assert isinstance(error, Unsupported)
        assert error.param == "prompt"


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_tokens", 0),
            ("max_tokens", "many"),
            ("max_tokens", 1.5),
            ("temperature", -0.1),
            ("temperature", 2.1),
            ("temperature", "hot"),
            ("top_p", 0),
            ("top_p", 1.1),
            ("top_k", -2),
            ("seed", "x"),
            ("stop", ["a"] * 17),
            ("model", ""),
            ("model", None),
            ("messages", "hello"),
        ],
    )
    def test_a_value_of_the_wrong_type_or_range_is_refused_by_its_field(self, field: str, value: object) -> None:
        error = refused(CHAT_ENDPOINT, chat(**{field: value}))
        assert (error.code, error.param) == ("invalid_type", field)

    @pytest.mark.parametrize("missing", ["model", "messages"])
    def test_a_missing_field_is_named(self, missing: str) -> None:
        fields = {name: value for name, value in json.loads(chat()).items() if name != missing}
        assert refused(CHAT_ENDPOINT, json.dumps(fields).encode()).param == missing

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("n", 2),
            ("logprobs", True),
            ("stream", True),
            ("tools", [{"type": "function"}]),
            ("functions", [{"name": "f"}]),
            ("response_format", {"type": "json_object"}),
            ("frequency_penalty", 0.5),
            ("presence_penalty", -0.5),
            ("logit_bias", {"1": 5}),
            ("modalities", ["audio"]),
            ("audio", {"voice": "x"}),
        ],
    )
    def test_what_is_not_offered_is_refused_by_name(self, field: str, value: object) -> None:
        error = refused(CHAT_ENDPOINT, chat(**{field: value}))
        assert isinstance(error, Unsupported)
        assert (error.code, error.param) == ("unsupported_parameter", field)
        assert field in error.message

    @pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "x"), ("best_of", 3), ("stream", True)])
    def test_the_older_endpoint_has_refusals_of_its_own(self, field: str, value: object) -> None:
        assert refused(TEXT_ENDPOINT, text(**{field: value})).param == field

    @pytest.mark.parametrize(
        ("field", "value"),
        [("n", 1), ("stream", False), ("tools", []), ("response_format", {"type": "text"}), ("logprobs", False)],
    )
    def test_a_value_that_switches_something_off_is_accepted(self, field: str, value: object) -> None:
        parse_body(CHAT_ENDPOINT, chat(**{field: value}))

    @pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'{"model": "\xff"}'])
    def test_what_is_not_json_is_refused_as_such(self, body: bytes) -> None:
        assert refused(CHAT_ENDPOINT, body).code == "invalid_json"

    @pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"text"'])
    def test_json_that_is_no_object_is_refused(self, body: bytes) -> None:
        error = refused(CHAT_ENDPOINT, body)
        assert (error.code, error.param) == ("invalid_type", "body")

    def test_another_endpoint_is_refused_with_those_there_are(self) -> None:
        error = refused("/v1/embeddings", chat())
        assert error.code == "invalid_endpoint"
        assert CHAT_ENDPOINT in error.message


class TestBodies:
    def test_an_answer_to_a_chat_is_what_openai_sends(self) -> None:
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

    def test_an_answer_to_a_text_is_what_openai_sends(self) -> None:
        body = response_body(TEXT_ENDPOINT, "x", "m", ANSWER, 1)
        assert (body["id"], body["object"]) == ("cmpl-x", "text_completion")
        assert body["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "stop", "text": "hi"}]

    def test_usage_adds_up(self) -> None:
        assert response_body(TEXT_ENDPOINT, "x", "m", ANSWER, 1)["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1},
        }

    def test_an_error_has_openais_four_fields(self) -> None:
        assert error_body("a_code", "what and what to do", param="model") == {
            "error": {
                "message": "what and what to do",
                "type": "invalid_request_error",
                "param": "model",
                "code": "a_code",
            }
        }


def test_a_request_reaches_the_engine_with_everything_it_asked_for() -> None:
    # Given
    request = parse_body(CHAT_ENDPOINT, chat(max_tokens=3))

    # When
    generate = request.to_generate("id", priority=4, stream=True)

    # Then
    assert (generate.id, generate.model, generate.messages, generate.priority, generate.stream) == (
        "id",
        "m",
        HELLO,
        4,
        True,
    )
    assert generate.sampling == request.sampling
