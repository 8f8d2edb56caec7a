"""Answers within a JSON schema, from models without sense: they fit it, or their request says why not."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from core.errors import MillraceError
from core.prompts import PromptCodec
from core.protocol import Failed, Finished, Generate, Sampling
from engine.runtime import Arrival
from engine.sampling.grammar import COMPILE_SECONDS
from engine.waiting.compiling import LOOK_SECONDS
from tests.engine_harness import CLIENT, Harness, random_prompt
from tests.engine_models import number_tokenizer, tiny_model, tiny_tokenizer

BYTES = PromptCodec(tiny_tokenizer(), None)

LONG = '{"type": "array", "items": {"type": "integer"}, "minItems": 40}'
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "integer"},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", 7, None]},
    {"const": {"a": [1, "é€😀"]}},
    {"type": "string", "maxLength": 8},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "pattern": "^[a-f]{2,5}-[0-9]+$", "maxLength": 12},
    {"type": "string", "format": "date"},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    {
        "type": "object",
        "properties": {"list": {"type": "array", "items": {"$ref": "#/$defs/one"}, "maxItems": 2}},
        "required": ["list"],
        "additionalProperties": False,
        "$defs": {"one": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"],
                          "additionalProperties": False}},
    },
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": ["boolean", "null"]},
]  # fmt: skip


def is_fit(value: Any, schema: dict[str, Any]) -> bool:
    """The few rules that `SCHEMAS` use, read off the JSON Schema specification."""
    if "anyOf" in schema:
        return any(is_fit(value, one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return any(json.dumps(value) == json.dumps(one) for one in schema.get("enum", [schema.get("const")]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if not any(isinstance(value, types.get(kind, (int, float))) for kind in kinds):
        return False
    match value:
        case bool() | None:
            return True
        case dict():
            known = schema.get("properties", {})
            is_closed = schema.get("additionalProperties", True) is False
            return set(schema.get("required", [])) <= set(value) and not (is_closed and set(value) - set(known))
        case str():
            return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99))
        case list():
            return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99))
        case _:
            return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))


def test_answers_within_a_schema_are_json_that_fits_it_whatever_runs_beside_them() -> None:
    # Given a model without sense, and requests of which every other one has a schema
    harness = Harness(tiny_model("llama"), BYTES, num_slots=6, prefill_tokens=32)
    for index, schema in enumerate(SCHEMAS):
        text = json.dumps(schema)
        drawn = Sampling(seed=index, max_tokens=400, json_schema=text, top_p=0.9 if index % 3 else 1.0)
        harness.submit(f"schema {index}", random_prompt(5 + index), drawn, stream=index % 2 == 0)
        if index % 5 == 0:
            harness.submit(f"free {index}", random_prompt(5), Sampling(seed=1, max_tokens=30, ignore_eos=True))
    # When they run
    harness.run()
    # Then those that ended by themselves fit, all but few did, and their neighbours are as they would be alone
    ended = 0
    for index, schema in enumerate(SCHEMAS):
        finished = harness.outcomes[f"schema {index}"]
        assert isinstance(finished, Finished), finished
        if finished.finish_reason == "stop":
            ended += 1
            assert is_fit(json.loads(finished.text), schema), (finished.text, schema)
        if index % 2 == 0:
            assert "".join(delta.text for delta in harness.deltas[f"schema {index}"]) == finished.text
    assert ended >= len(SCHEMAS) - 3
    texts = {harness.outcomes[f"free {index}"].text for index in range(0, len(SCHEMAS), 5)}  # type: ignore[union-attr]
    alone = ask_alone(Sampling(seed=1, max_tokens=30, ignore_eos=True))
    assert texts == {alone}


def ask_alone(sampling: Sampling) -> str:
    harness = Harness(tiny_model("llama"), BYTES, num_slots=1)
    harness.submit("alone", random_prompt(5), sampling)
    harness.run()
    outcome = harness.outcomes["alone"]
    assert isinstance(outcome, Finished)
    return outcome.text


def test_an_answer_within_a_schema_that_its_limit_cuts_ends_for_length() -> None:
    harness = Harness(tiny_model("llama"), BYTES)
    harness.submit("cut", random_prompt(6), Sampling(seed=1, max_tokens=4, json_schema=LONG))
    harness.run()
    finished = harness.outcomes["cut"]
    assert isinstance(finished, Finished)
    assert (finished.finish_reason, finished.usage.completion_tokens) == ("length", 4)
    assert finished.text.startswith("[")


@pytest.mark.parametrize(
    ("codec", "schema", "code"),
    [(BYTES, '{"type": "wheel"}', "invalid_request"), (PromptCodec(number_tokenizer(), None), "{}", "model_failure")],
    ids=["no schema", "no tokens for it"],
)
def test_a_schema_that_cannot_be_met_ends_its_request_alone(codec: PromptCodec, schema: str, code: str) -> None:
    # Given a request of a hopeless schema between two others
    harness = Harness(tiny_model("llama"), codec, num_slots=4)
    harness.submit("before", random_prompt(5), Sampling(max_tokens=9))
    try:  # whether it is known already depends on how fast the schema was compiled
        harness.submit("hopeless", random_prompt(5), Sampling(max_tokens=9, json_schema=schema))
        refused = None
    except MillraceError as error:
        refused = error
    harness.submit("after", random_prompt(5), Sampling(max_tokens=9))
    # When they run
    harness.run()
    # Then it fails with a reason, and the others have their answers
    failure = refused or harness.failure("hopeless")
    assert (failure.code, failure.is_retryable) == (code, False)
    assert "response_format" in failure.message
    assert all(isinstance(harness.outcomes[name], Finished) for name in ("before", "after"))


def test_a_schema_holds_after_its_sequence_gave_way() -> None:
    # Given an answer within a schema that gives way in the middle
    schema = '{"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 8, "maxItems": 8}'
    sampling = Sampling(seed=3, max_tokens=300, json_schema=schema)
    alone = ask_alone(sampling)
    crowd = Harness(tiny_model("llama"), BYTES, num_slots=1)
    crowd.submit("one", random_prompt(5), sampling)
    for _ in range(9):
        crowd.step()
    crowd.submit("urgent", random_prompt(9), Sampling(max_tokens=3), priority=10)
    crowd.run()
    # Then it is the answer that it would have been
    assert crowd.outcomes["one"].text == alone  # type: ignore[union-attr]
    assert len(json.loads(alone)) == 8


def test_a_schema_beyond_what_the_library_follows_fails_and_is_no_half_an_answer() -> None:
    # Given rows of a choice between so many wide objects that the library gives up within the answer
    choices = [
        {
            "type": "object",
            "properties": {f"k{choice}_{number}": {"type": "string"} for number in range(30)},
            "additionalProperties": False,
        }
        for choice in range(60)
    ]
    harness = Harness(tiny_model("llama"), BYTES, num_slots=4)

    # When
    for seed in range(4):
        sampling = Sampling(temperature=1, seed=seed, max_tokens=200, json_schema=json.dumps({"anyOf": choices}))
        harness.submit(str(seed), random_prompt(20), sampling)
    harness.run()

    # Then
    outcomes = list(harness.outcomes.values())
    for outcome in outcomes:
        if isinstance(outcome, Finished) and outcome.finish_reason == "stop":
            json.loads(outcome.text)
    assert any("JSON schema" in outcome.message for outcome in outcomes if isinstance(outcome, Failed))


class SlowCompiler(ThreadPoolExecutor):
    """Compiles when it is told to, on the thread that tells it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.orders: list[Callable[[], object]] = []

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:
        self.orders.append(lambda: work(*arguments, **more))
        return Future()

    def work(self) -> None:
        while self.orders:
            self.orders.pop(0)()


def compiled_by_hand(**options: Any) -> tuple[Harness, SlowCompiler]:
    harness = Harness(tiny_model("llama"), BYTES, **options)
    compiler = SlowCompiler()
    harness.generator._answers._grammars.__dict__["_compiler"] = compiler
    return harness, compiler


BOOLEAN = Sampling(max_tokens=30, json_schema='{"type": "boolean"}')


def test_a_schema_that_is_still_compiled_holds_up_nobody() -> None:
    # Given one slot, and a request whose schema is being compiled ahead of another
    harness, compiler = compiled_by_hand(num_slots=1)
    harness.submit("slow", random_prompt(5), BOOLEAN)
    assert harness.generator.wait_seconds() == LOOK_SECONDS
    harness.submit("free", random_prompt(6), Sampling(max_tokens=5, ignore_eos=True))
    # When steps pass
    for _ in range(6):
        harness.step()
    # Then the other has its answer, and the first waits without keeping the loop busy
    assert list(harness.outcomes) == ["free"]
    assert harness.generator.wait_seconds() == LOOK_SECONDS
    assert harness.generator.gauges().num_waiting == 1
    # And is answered once its schema is compiled
    compiler.work()
    assert harness.generator.wait_seconds() == 0.0
    harness.run()
    assert isinstance(harness.outcomes["slow"], Finished)


def test_requests_that_end_while_their_schema_is_compiled_are_gone() -> None:
    # Given three choices of one request whose schema is being compiled
    harness, compiler = compiled_by_hand(num_slots=2)
    request = Generate("gone", "tiny", BOOLEAN, token_ids=random_prompt(5), num_answers=3)
    harness.generator.submit(Arrival(CLIENT, request, 0.0))
    # When it is cancelled
    harness.generator.cancel((CLIENT, "gone"))
    compiler.work()
    # Then there is nothing left to do
    assert harness.generator.wait_seconds() is None
    assert harness.generator.gauges().num_waiting == 0


@pytest.mark.parametrize("is_late", [False, True])
def test_all_choices_of_a_schema_that_cannot_be_compiled_end_together(is_late: bool) -> None:
    # Given two choices of one request whose schema is none, or never ready
    now = [0.0]
    harness, compiler = compiled_by_hand(num_slots=2)
    harness.generator._answers._grammars._clock = lambda: now[0]
    schema = '{"type": "boolean"}' if is_late else '{"type": "wheel"}'
    request = Generate("bad", "tiny", Sampling(json_schema=schema), token_ids=random_prompt(5), num_answers=2)
    harness.generator.submit(Arrival(CLIENT, request, 0.0))
    # When its time is over, or it is compiled
    if is_late:
        (compilation,) = harness.generator._answers._grammars._compiled.values()
        compilation.started_seconds, now[0] = 0.0, COMPILE_SECONDS + 1
    else:
        compiler.work()
    harness.run()
    # Then there is one outcome, and it says why
    assert harness.failure("bad").code == "invalid_request"
    assert ("longer than 20 s" if is_late else "cannot") in harness.failure("bad").message
    assert harness.generator.gauges().num_waiting == 0
