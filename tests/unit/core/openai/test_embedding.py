import base64
import json
import struct
from typing import Any

import pytest

from core.errors import InvalidRequest
from core.openai.embedding import MAX_INPUTS, parse_body, response_body
from core.protocol import Embed, Embedded, Timing, Usage


def body(given: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": given, **fields}).encode()


@pytest.mark.parametrize(
    ("given", "texts", "token_ids"),
    [
        ("a text", ["a text"], None),
        (["a", "b"], ["a", "b"], None),
        ([1, 2, 3], None, [[1, 2, 3]]),
        ([[1, 2], [3]], None, [[1, 2], [3]]),
    ],
)
def test_an_input_comes_in_four_forms(given: Any, texts: list[str] | None, token_ids: list[list[int]] | None) -> None:
    message = parse_body(body(given, dimensions=4, user="somebody")).to_embed("id", priority=3)
    assert message == Embed("id", "m", texts, token_ids, 4, 3)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (body(""), "input"),
        (body([]), "input"),
        (body(["a", ""]), "input"),
        (body([[1], []]), "input"),
        (body(["a", 1]), "input"),
        (body([[1], "a"]), "input"),
        (body(["a"] * (MAX_INPUTS + 1)), "input"),
        (body(7), "input"),
        (body([-1]), "input[0]"),
        (body("a", dimensions=0), "dimensions"),
        (body("a", encoding_format="hex"), "encoding_format"),
        (b'{"model": "m"}', "input"),
        (b'{"input": "a"}', "model"),
        (b"[]", "body"),
        (b"{", "body"),
    ],
)
def test_what_is_wrong_is_refused_by_name(content: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_body(content)
    assert refused.value.param == param


def test_as_many_inputs_as_openai_takes_are_taken() -> None:
    assert len(parse_body(body(["a"] * MAX_INPUTS)).texts or ()) == MAX_INPUTS


def test_numbers_are_floats_unless_base64_is_asked_for() -> None:
    # Given
    embeddings = [struct.pack("<2f", 0.5, -0.25), struct.pack("<2f", 1.0, 0.0)]
    answer = Embedded("id", embeddings, Usage(5, 0), Timing(0, 0, 0))
    # When
    floats = response_body(body("a"), "m", answer)
    encoded = response_body(body("a", encoding_format="base64"), "m", answer)
    # Then
    assert [list(item["embedding"]) for item in floats["data"]] == [[0.5, -0.25], [1.0, 0.0]]
    assert [base64.b64decode(item["embedding"]) for item in encoded["data"]] == embeddings
    assert [item["index"] for item in floats["data"]] == [0, 1]
    assert floats["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (floats["object"], floats["model"], floats["data"][0]["object"]) == ("list", "m", "embedding")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_body(body("a", dimension=4))
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "dimension")
