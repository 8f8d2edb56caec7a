"""The work that benchmarks give: the same every time, of the lengths that are promised, and valid batch files."""

import json
import re

import pytest

from benchmarks.random_model import VOCABULARY
from benchmarks.workload import ANSWER_TOKENS, PROMPT_TOKENS, batch_file, lines_of, questions, requests
from core.openai.batchfile import BatchReader
from core.openai.completion import CHAT_ENDPOINT


def test_the_same_seed_gives_the_same_questions_and_another_seed_others() -> None:
    assert questions(20) == questions(20)
    assert questions(20) == questions(30)[:20]
    assert questions(20) != questions(20, seed=1)


def test_questions_have_as_many_known_words_as_they_say_and_lengths_within_bounds() -> None:
    for question in questions(200):
        # Given
        numbers = [int(re.fullmatch(r"w(\d+)", word)[1]) for word in question.text.split(" ")]  # type: ignore[index]
        # Then
        assert len(numbers) == question.prompt_tokens
        assert max(numbers) < VOCABULARY
        assert PROMPT_TOKENS[0] <= question.prompt_tokens <= PROMPT_TOKENS[1]
        assert ANSWER_TOKENS[0] <= question.answer_tokens <= ANSWER_TOKENS[1]


def test_a_batch_file_of_questions_asks_for_exactly_their_answers() -> None:
    # Given
    asked = questions(30)
    # When
    content = batch_file(asked, "random")
    # Then
    bodies = [json.loads(line)["body"] for line in content.splitlines()]
    assert [body["max_tokens"] for body in bodies] == [question.answer_tokens for question in asked]
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in bodies)
    assert len(list(reader("random").rows(content.splitlines()))) == 30


def test_lines_have_the_length_that_was_asked_for_and_are_all_accepted() -> None:
    # When
    content = lines_of(50, 300, "null")
    # Then
    assert {len(line) for line in content.splitlines(keepends=True)} == {300}
    assert len(list(reader("null").rows(content.splitlines()))) == 50


def test_a_length_that_no_line_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bytes: expected at least"):
        lines_of(1, 50, "null")


def test_the_64_requests_of_token_ids_ask_for_2920_answer_tokens_whatever_the_prompts_say() -> None:
    for seed in (0, 1):
        # When
        turn = requests(64, seed)
        # Then
        assert turn.num_answer_tokens == sum(turn.answer_tokens) == 2_920
        assert all(PROMPT_TOKENS[0] <= len(prompt) <= PROMPT_TOKENS[1] for prompt in turn.prompts)
        assert all(ANSWER_TOKENS[0] <= length <= ANSWER_TOKENS[1] for length in turn.answer_tokens)


def test_fewer_requests_are_the_first_of_them_and_a_smaller_vocabulary_is_kept_to() -> None:
    assert requests(10).prompts == requests(64).prompts[:10]
    assert requests(10).answer_tokens == requests(64).answer_tokens[:10]
    assert requests(10, seed=1).prompts != requests(10).prompts
    assert max(token for prompt in requests(64, vocabulary=50).prompts for token in prompt) == 49


def reader(model: str) -> BatchReader:
    return BatchReader(endpoint=CHAT_ENDPOINT, max_rows=50_000, known_models={model})
