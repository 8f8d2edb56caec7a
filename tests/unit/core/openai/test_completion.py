import json
from typing import Any

import pytest
from openai.types import completion_create_params as text_create_params
from openai.types.chat import completion_create_params

from core.errors import InvalidRequest, Unsupported
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT, parse_body, split_prompts
from core.protocol import Sampling

HELLO = [{"role": "user", "content": "hello"}]


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

    def test_what_openai_and_vllm_have_for_choosing_tokens_is_taken_over(self) -> None:
        # Given
        body = chat(
            min_p=0.1, repetition_penalty=1.2, presence_penalty=-2, frequency_penalty=0.5, min_tokens=3,
            stop_token_ids=[5, 6], logit_bias={"7": -100, "8": 1.5},
        )  # fmt: skip

        # Then
        assert parse_body(CHAT_ENDPOINT, body).sampling == Sampling(
            min_p=0.1, repetition_penalty=1.2, presence_penalty=-2.0, frequency_penalty=0.5, min_tokens=3,
            stop_token_ids=(5, 6), logit_bias={7: -100.0, 8: 1.5},
        )  # fmt: skip

    def test_several_answers_are_asked_for_by_n(self) -> None:
        assert parse_body(CHAT_ENDPOINT, chat(n=3)).to_generate("id", priority=0).num_answers == 3

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, None),
            ({"logprobs": False}, None),
            ({"logprobs": True}, 0),
            ({"logprobs": True, "top_logprobs": 4}, 4),
        ],
    )
    def test_log_probabilities_come_only_where_asked_for(self, fields: dict[str, Any], expected: int | None) -> None:
        assert parse_body(CHAT_ENDPOINT, chat(**fields)).sampling.num_logprobs == expected

    def test_top_logprobs_need_logprobs(self) -> None:
        assert refused(CHAT_ENDPOINT, chat(top_logprobs=2)).param == "top_logprobs"

    @pytest.mark.parametrize(
        ("response_format", "schema"),
        [
            ({"type": "text"}, None),
            ({"type": "json_object"}, {"type": "object"}),
            ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}, {"type": "array"}),
        ],
    )
    def test_the_format_of_the_answer_becomes_a_schema(self, response_format: object, schema: object) -> None:
        # When
        given = parse_body(CHAT_ENDPOINT, chat(response_format=response_format)).sampling.json_schema
        # Then
        assert (None if given is None else json.loads(given)) == schema

    @pytest.mark.parametrize(
        "response_format",
        [{}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": "x"}}],
    )
    def test_another_format_is_refused_with_those_there_are(self, response_format: object) -> None:
        error = refused(CHAT_ENDPOINT, chat(response_format=response_format))
        assert error.param == "response_format"
        assert "json_schema" in error.message

    def test_the_newer_name_of_max_tokens_wins(self) -> None:
        body = chat(max_tokens=7, max_completion_tokens=9)
        assert parse_body(CHAT_ENDPOINT, body).sampling.max_tokens == 9

    def test_vllms_minus_one_switches_top_k_off(self) -> None:
        assert parse_body(CHAT_ENDPOINT, chat(top_k=-1)).sampling.top_k == 0

    def test_a_single_stop_string_is_a_list_of_one(self) -> None:
        assert parse_body(CHAT_ENDPOINT, chat(stop="end")).sampling.stop == ("end",)

    def test_fields_that_change_nothing_about_the_answer_are_accepted(self) -> None:
        parse_body(CHAT_ENDPOINT, chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto"))

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

    @pytest.mark.parametrize(
        ("prompt", "prompts"),
        [
            ("a", ["a"]),
            (["a", "b"], ["a", "b"]),
            ([[1, 2], [3]], [[1, 2], [3]]),
            ([[1, 2]], [[1, 2]]),
            ([1, 2], [[1, 2]]),
            (["a"], [["a"]]),
            ([1, "a"], [[1, "a"]]),
        ],
    )
    def test_several_prompts_are_as_many_requests(self, prompt: Any, prompts: list[Any]) -> None:
        bodies = [json.loads(body) for body in split_prompts(TEXT_ENDPOINT, text(prompt=prompt, seed=3))]
        assert [body["prompt"] for body in bodies] == prompts
        assert {body["seed"] for body in bodies} == {3}

    def test_more_answers_than_one_request_may_have_are_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="at most 128 answers"):
            split_prompts(TEXT_ENDPOINT, text(prompt=["a"] * 65, n=2))

    @pytest.mark.parametrize("prompt", [[], ["a", "b"], [1, "a"]])
    def test_anything_but_one_prompt_is_refused(self, prompt: list[Any]) -> None:
        error = refused(TEXT_ENDPOINT, text(prompt=prompt))
        assert isinstance(error, Unsupported)
        assert error.param == "prompt"

    @pytest.mark.parametrize(("given", "expected"), [(None, None), (False, None), (0, 0), (3, 3), (True, 1)])
    def test_the_older_endpoint_counts_its_log_probabilities(self, given: object, expected: int | None) -> None:
        assert parse_body(TEXT_ENDPOINT, text(logprobs=given)).sampling.num_logprobs == expected

    def test_best_of_as_many_as_are_given_back_is_no_choice(self) -> None:
        assert parse_body(TEXT_ENDPOINT, text(n=2, best_of=2)).num_answers == 2


class TestRefusals:
    @pytest.mark.parametrize("bias", [{"x": 1}, {"1.5": 1}])
    def test_a_bias_on_what_is_no_token_id_is_refused(self, bias: object) -> None:
        assert refused(CHAT_ENDPOINT, chat(logit_bias=bias)).param == "logit_bias"

    def test_more_tokens_at_least_than_at_most_are_refused(self) -> None:
        assert refused(CHAT_ENDPOINT, chat(min_tokens=5, max_tokens=4)).param == "min_tokens"

    def test_a_bias_beyond_openais_range_is_refused(self) -> None:
        assert refused(CHAT_ENDPOINT, chat(logit_bias={"1": 101})).code == "invalid_type"

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
            ("n", 0),
            ("n", 129),
            ("frequency_penalty", 2.5),
            ("presence_penalty", -2.5),
            ("repetition_penalty", 0),
            ("min_p", 1.5),
            ("min_tokens", -1),
            ("stop_token_ids", "x"),
            ("top_logprobs", 21),
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
            ("functions", [{"name": "f"}]),
            ("best_of", 2),
            ("guided_json", {"type": "object"}),
            ("structured_outputs", {"regex": "a"}),
            ("bad_words", ["x"]),
            ("allowed_token_ids", [1]),
            ("chat_template_kwargs", {"enable_thinking": False}),
            ("include_stop_str_in_output", True),
            ("prompt_logprobs", 1),
            ("modalities", ["audio"]),
            ("audio", {"voice": "x"}),
        ],
    )
    def test_what_is_not_offered_is_refused_by_name(self, field: str, value: object) -> None:
        error = refused(CHAT_ENDPOINT, chat(**{field: value}))
        assert isinstance(error, Unsupported)
        assert (error.code, error.param) == ("unsupported_parameter", field)
        assert field in error.message

    @pytest.mark.parametrize("endpoint", [CHAT_ENDPOINT, TEXT_ENDPOINT])
    def test_an_unknown_field_is_refused_by_name(self, endpoint: str) -> None:
        body = chat(temprature=1) if endpoint == CHAT_ENDPOINT else text(temprature=1)
        error = refused(endpoint, body)
        assert (error.code, error.param) == ("unknown_parameter", "temprature")

    def test_every_field_of_openai_is_known_and_those_that_change_nothing_are_accepted(self) -> None:
        chat_fields = completion_create_params.CompletionCreateParamsBase.__annotations__
        text_fields = text_create_params.CompletionCreateParamsBase.__annotations__
        for endpoint, fields in ((CHAT_ENDPOINT, chat_fields), (TEXT_ENDPOINT, text_fields)):
            own = json.loads(chat() if endpoint == CHAT_ENDPOINT else text())
            parse_body(endpoint, json.dumps({**dict.fromkeys(fields), **own}).encode())
        parse_body(CHAT_ENDPOINT, chat(user="me", metadata={"a": "b"}, store=True, reasoning_effort="low"))

    @pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "x"), ("best_of", 3)])
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
