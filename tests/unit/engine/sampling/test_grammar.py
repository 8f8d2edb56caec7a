"""JSON schemas as masks over real tokenizers: what may come makes JSON that fits, and what cannot be met says so."""

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from core.errors import InvalidRequest, MillraceError, ModelFailure
from core.prompts import PromptCodec
from engine.sampling.grammar import NUM_KEPT, Grammars, SchemaConstraint, Vocabulary
from tests.engine_models import END_ID, number_tokenizer, tiny_tokenizer
from tests.unit.core.test_prompts import sentencepiece_like_tokenizer

NAME_AND_AGE = json.dumps(
    {
        "type": "object",
        "properties": {"näme": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
        "required": ["näme", "age"],
        "additionalProperties": False,
    }
)


def vocabulary(tokenizer: Tokenizer, end_ids: frozenset[int] = frozenset({END_ID}), padding: int = 3) -> Vocabulary:
    codec = PromptCodec(tokenizer, None)
    size = tokenizer.get_vocab_size() + padding
    return Vocabulary(size, codec.token_bytes, codec.encode_fragment, codec.special_ids, end_ids)


def allowed(constraint: SchemaConstraint, words: Vocabulary) -> list[int]:
    mask = np.zeros((words.size + 7) // 8, dtype=np.uint8)
    constraint.fill(mask)
    return [int(token_id) for token_id in np.flatnonzero(np.unpackbits(mask, bitorder="little"))]


def walk(schema: str, words: Vocabulary, seed: int, num_tokens: int = 400) -> bytes:
    """A random answer within the schema, as a model without sense would give it."""
    dice, constraint, answer = random.Random(seed), Grammars(words).constraint(schema), b""
    for _ in range(num_tokens):
        token_id = dice.choice(allowed(constraint, words))
        constraint.take(token_id)
        if token_id not in words.end_ids:
            answer += words.token_bytes(token_id)
        if constraint.is_complete:
            return answer
    raise AssertionError(f"no end after {num_tokens} tokens: {answer!r}")


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), sentencepiece_like_tokenizer()], ids=["bytes", "pieces"])
def test_whatever_is_allowed_makes_json_that_fits(tokenizer: Tokenizer) -> None:
    words = vocabulary(tokenizer)
    for seed in range(20):
        answer = json.loads(walk(NAME_AND_AGE, words, seed))
        assert set(answer) == {"näme", "age"}
        assert isinstance(answer["näme"], str)
        assert len(answer["näme"]) <= 5
        assert isinstance(answer["age"], int)
        assert answer["age"] <= 99


def test_a_number_may_go_on_or_end() -> None:
    # Given an answer that may be complete
    words = vocabulary(tiny_tokenizer(), frozenset({END_ID, 0}))
    constraint = Grammars(words).constraint('{"type": "integer"}')
    [seven] = tiny_tokenizer().encode("7").ids
    constraint.take(seven)
    # Then every end token may come, and more digits
    assert {0, END_ID, seven} <= set(allowed(constraint, words))
    assert not constraint.is_complete
    # And an end token ends it
    constraint.take(END_ID)
    assert constraint.is_complete


def test_an_object_is_complete_with_its_last_bracket() -> None:
    words = vocabulary(tiny_tokenizer())
    constraint = Grammars(words).constraint('{"type": "object", "additionalProperties": false}')
    for token_id in tiny_tokenizer().encode("{}").ids:
        assert not constraint.is_complete
        constraint.take(token_id)
    assert constraint.is_complete


def test_white_space_ends() -> None:
    # Given a model that likes nothing better than white space
    words = vocabulary(tiny_tokenizer())
    constraint = Grammars(words).constraint('{"type": "array", "items": {"type": "integer"}}')
    written = b""
    for _ in range(60):
        choices = allowed(constraint, words)
        blank = [one for one in choices if words.token_bytes(one).strip(b" \n") == b""]
        if written and not blank:
            break
        token_id = (blank or choices)[0]
        constraint.take(token_id)
        written += words.token_bytes(token_id)
    # Then it comes to an end of it
    assert written.startswith(b"[")
    assert 1 <= len(written) <= 18


def test_answers_to_the_same_schema_do_not_disturb_each_other() -> None:
    words = vocabulary(tiny_tokenizer())
    grammars = Grammars(words)
    one, other = (grammars.constraint('{"enum": ["a", "b"]}') for _ in range(2))
    before = allowed(other, words)
    one.take(allowed(one, words)[0])
    assert allowed(other, words) == before
    assert allowed(one, words) != before


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"type": "wheel"}', "Invalid type: wheel"),
        ('{"type": "integer", "minimum": 5, "maximum": 2}', "minimum"),
        ('{"not": {"type": "string"}}', "Unimplemented keys"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ("not json", "expected"),
        ("[]", "object"),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused_by_name(schema: str, reason: str) -> None:
    # Given a schema of no use
    words = vocabulary(tiny_tokenizer())
    grammars = Grammars(words)
    # When it is asked for
    with pytest.raises(InvalidRequest, match=reason) as caught:
        allowed(grammars.constraint(schema), words)
    assert caught.value.param == "response_format"
    assert "<state>" not in caught.value.message
    # Then the next to ask hears it at once, and others are served
    with pytest.raises(InvalidRequest, match="response_format"):
        grammars.constraint(schema)
    assert allowed(grammars.constraint(NAME_AND_AGE), words)


def test_a_schema_that_the_vocabulary_cannot_write_is_a_dead_end() -> None:
    # Given a tokenizer of numbers
    words = vocabulary(number_tokenizer())
    constraint = Grammars(words).constraint('{"type": "object"}')
    # Then no token is allowed, and the reason is told
    with pytest.raises(ModelFailure, match="cannot meet the JSON schema"):
        allowed(constraint, words)


def test_a_token_against_the_grammar_is_a_dead_end_and_not_the_end_of_all() -> None:
    words = vocabulary(tiny_tokenizer())
    constraint = Grammars(words).constraint('{"type": "object"}')
    constraint.take(tiny_tokenizer().encode("]").ids[0])
    with pytest.raises(MillraceError, match="doesn't satisfy the grammar"):
        allowed(constraint, words)


def test_places_of_the_model_that_are_no_tokens_are_never_allowed() -> None:
    words = vocabulary(tiny_tokenizer(), padding=40)
    constraint = Grammars(words).constraint('{"type": "string"}')
    constraint.take(tiny_tokenizer().encode('"').ids[0])
    assert max(allowed(constraint, words)) < tiny_tokenizer().get_vocab_size()


def test_the_oldest_grammars_are_forgotten() -> None:
    # Given more schemas than are kept
    words = vocabulary(tiny_tokenizer())
    grammars = Grammars(words)
    first = grammars.constraint('{"const": 0}')
    for number in range(1, NUM_KEPT + 2):
        grammars.constraint(f'{{"const": {number}}}')
    # Then no more are held, and whoever has one keeps it
    assert len(grammars._compiled) == NUM_KEPT
    assert allowed(first, words)
