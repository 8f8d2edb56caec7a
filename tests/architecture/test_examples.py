import json

from core.openai.batchfile import BatchReader
from core.openai.completion import CHAT_ENDPOINT, parse_body
from core.settings import BUILTIN_MODEL
from tests.architecture.source import ROOT

QUESTIONS = ROOT / "examples" / "questions.jsonl"
CONTEXT_CHARACTERS = 1500  # a token of the built-in model is about two characters, its context 1,024 tokens


def lines() -> list[bytes]:
    return QUESTIONS.read_bytes().splitlines()


def test_the_questions_of_the_demo_are_a_valid_batch() -> None:
    # Given
    reader = BatchReader(endpoint=CHAT_ENDPOINT, max_rows=1000, known_models={BUILTIN_MODEL})

    # When
    rows = list(reader.rows(lines()))

    # Then
    assert len(rows) >= 100
    assert len({row.custom_id for row in rows}) == len(rows)


def test_the_questions_are_of_several_lengths_and_fit_into_the_model() -> None:
    lengths = [sum(len(m["content"]) for m in json.loads(line)["body"]["messages"]) for line in lines()]
    assert min(lengths) < 30
    assert sum(length > 250 for length in lengths) >= 5
    assert max(lengths) < CONTEXT_CHARACTERS


def test_the_questions_use_sampling_with_seeds_and_greedy_answers() -> None:
    samplings = [parse_body(CHAT_ENDPOINT, json.dumps(json.loads(line)["body"]).encode()).sampling for line in lines()]
    assert len({sampling.max_tokens for sampling in samplings}) > 3
    assert any(sampling.temperature == 0 for sampling in samplings)
    assert all(sampling.seed is not None for sampling in samplings if sampling.temperature > 0)


def test_no_question_is_asked_twice() -> None:
    questions = [json.loads(line)["body"]["messages"][-1]["content"] for line in lines()]
    assert len(set(questions)) == len(questions)
