import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.openai.batchfile import (
    MAX_LINE_BYTES,
    MAX_LINE_ERRORS,
    BatchFileError,
    BatchReader,
    BatchRow,
    LineError,
    split_lines,
)
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT
from core.openai.embedding import EMBEDDINGS_ENDPOINT
from core.protocol import EMBEDDER, GENERATOR

MODEL = "org/model"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def line(custom_id: object = "a", **fields: Any) -> bytes:
    envelope = {"custom_id": custom_id, "method": "POST", "url": CHAT_ENDPOINT, "body": BODY, **fields}
    return json.dumps({name: value for name, value in envelope.items() if value is not ...}).encode()


def reader(max_rows: int = 100) -> BatchReader:
    return BatchReader(endpoint=CHAT_ENDPOINT, max_rows=max_rows, known_models={MODEL, "other"})


def refused(lines: Iterable[bytes], max_rows: int = 100) -> list[LineError]:
    with pytest.raises(BatchFileError) as caught:
        list(reader(max_rows).rows(lines))
    return caught.value.errors


class TestRows:
    def test_every_line_becomes_a_row_in_its_order(self) -> None:
        # Given
        source = reader()

        # When
        rows = list(source.rows([line("b"), line("a")]))

        # Then
        assert [(row.custom_id, row.model) for row in rows] == [("b", MODEL), ("a", MODEL)]
        assert source.model == MODEL

    def test_the_body_is_kept_as_it_came(self) -> None:
        # Given: spaces and an escape that no encoder of ours would write
        body = f'{{"model" : "{MODEL}", "messages":[{{"role":"user","content":"\\u00e4"}}] }}'

        # When
        (row,) = reader().rows([line("a").replace(json.dumps(BODY).encode(), body.encode())])

        # Then
        assert row == BatchRow("a", MODEL, body)

    def test_empty_lines_and_windows_line_ends_do_no_harm(self) -> None:
        rows = list(reader().rows([b"", line("a") + b"\r", b"  ", line("b")]))
        assert [row.custom_id for row in rows] == ["a", "b"]

    def test_fields_that_nobody_knows_are_ignored(self) -> None:
        assert len(list(reader().rows([line("a", comment="mine")]))) == 1

    def test_nothing_is_given_out_after_the_first_error(self) -> None:
        # Given
        source = reader().rows([line("a"), b"nonsense", line("b")])

        # Then
        assert next(source).custom_id == "a"
        with pytest.raises(BatchFileError):
            next(source)


class TestRefusals:
    @pytest.mark.parametrize(
        ("bad", "code", "param"),
        [
            (b"nonsense", "invalid_json_line", None),
            (b'{"custom_id": "a"', "invalid_json_line", None),
            (b"\xff\xfe", "invalid_json_line", None),
            (b"[1, 2]", "invalid_line", None),
            (b'"text"', "invalid_line", None),
            (line(...), "missing_custom_id", None),
            (line(7), "missing_custom_id", None),
            (line(None), "missing_custom_id", None),
            (line(""), "invalid_request", "custom_id"),
            (line("x" * 513), "invalid_request", "custom_id"),
            (line("a\0b"), "invalid_request", "custom_id"),
            (line(method="GET"), "invalid_method", "method"),
            (line(method=...), "invalid_line", None),
            (line(url="/v1/embeddings"), "invalid_url", "url"),
            (line(url=TEXT_ENDPOINT), "invalid_url", "url"),
            (line(url="https://api.example.org/v1/chat"), "invalid_endpoint", "url"),
            (line(body=...), "invalid_line", None),
            (line(body="text"), "invalid_type", "body"),
            (line(body={"messages": BODY["messages"]}), "invalid_type", "body.model"),
            (line(body={**BODY, "temperature": "hot"}), "invalid_type", "body.temperature"),
            (line(body={**BODY, "stream": True}), "unsupported_parameter", "body.stream"),
        ],
    )
    def test_a_bad_line_refuses_the_file_with_its_number_and_the_reason(
        self, bad: bytes, code: str, param: str | None
    ) -> None:
        # When
        errors = refused([line("first"), b"", bad])

        # Then
        assert [(error.code, error.line, error.param) for error in errors] == [(code, 3, param)]
        assert errors[0].message

    def test_a_doubled_custom_id_is_refused_where_it_comes_again(self) -> None:
        (error,) = refused([line("a"), line("b"), line("a")])
        assert (error.code, error.line, error.param) == ("duplicate_custom_id", 3, "custom_id")
        assert "'a'" in error.message

    def test_an_unknown_model_is_refused(self) -> None:
        (error,) = refused([line("a", body={**BODY, "model": "unknown"})])
        assert (error.code, error.line, error.param) == ("model_not_found", 1, "body.model")

    def test_a_second_model_is_refused(self) -> None:
        (error,) = refused([line("a"), line("b", body={**BODY, "model": "other"})])
        assert (error.code, error.line) == ("mismatched_model", 2)
        assert MODEL in error.message

    @pytest.mark.parametrize("lines", [[], [b""], [b"\n", b"   "]])
    def test_an_empty_file_is_refused(self, lines: list[bytes]) -> None:
        assert [(error.code, error.line) for error in refused(lines)] == [("empty_file", None)]

    def test_a_file_with_too_many_rows_is_refused(self) -> None:
        (error,) = refused([line(str(number)) for number in range(4)], max_rows=3)
        assert error.code == "too_many_requests"
        assert "at most 3" in error.message

    def test_a_file_of_exactly_the_most_rows_is_taken(self) -> None:
        assert len(list(reader(max_rows=3).rows([*(line(str(number)) for number in range(3)), b""]))) == 3

    def test_every_bad_line_is_named(self) -> None:
        errors = refused([b"x", line("a"), line("a"), line("b", method="PUT")])
        assert [(error.line, error.code) for error in errors] == [
            (1, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (4, "invalid_method"),
        ]

    def test_after_a_hundred_errors_nobody_reads_on(self) -> None:
        # Given
        num_read = 0

        def lines() -> Iterable[bytes]:
            nonlocal num_read
            for _ in range(10_000):
                num_read += 1
                yield b"nonsense"

        # When
        errors = refused(lines())

        # Then
        assert [error.line for error in errors] == list(range(1, MAX_LINE_ERRORS + 1))
        assert num_read == MAX_LINE_ERRORS


class TestLines:
    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_blocks_of_any_size_give_the_same_lines(self, content: bytes, size: int) -> None:
        blocks = [content[start : start + size] for start in range(0, len(content), size)]
        expected = content.split(b"\n")
        assert list(split_lines(blocks)) == (expected if expected[-1] else expected[:-1])

    def test_a_line_without_an_end_cannot_fill_the_memory(self) -> None:
        # Given
        block = b"x" * (MAX_LINE_BYTES // 4)

        # When
        with pytest.raises(BatchFileError) as caught:
            list(split_lines([b"short\n", *[block] * 8]))

        # Then
        assert [(error.code, error.line) for error in caught.value.errors] == [("line_too_long", 2)]


def test_embeddings_are_a_batch_of_an_embedding_model_alone() -> None:
    # Given
    def row(custom_id: str, given: object) -> bytes:
        return line(custom_id, url=EMBEDDINGS_ENDPOINT, body={"model": MODEL, "input": given})

    def read(kind: str, *lines: bytes) -> list[BatchRow]:
        source = BatchReader(EMBEDDINGS_ENDPOINT, 100, {MODEL}, {MODEL: kind})
        return list(source.rows(lines))

    # Then
    assert [row.custom_id for row in read(EMBEDDER, row("a", "text"), row("b", [1, 2]))] == ["a", "b"]
    with pytest.raises(BatchFileError) as refused:
        read(EMBEDDER, row("a", "text"), row("b", ""), row("c", ["x", ""]))
    assert [(error.line, error.param) for error in refused.value.errors] == [(2, "body.input"), (3, "body.input")]
    with pytest.raises(BatchFileError) as refused:
        read(GENERATOR, row("a", "text"))
    assert [(error.line, error.code) for error in refused.value.errors] == [(1, "unsupported_model")]
