"""`/v1/embeddings` with the official client: online and as a batch, over a worker and a real engine process."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import update

from core.protocol import EMBEDDER, GENERATOR
from db.tables import ModelRow
from engine.null import embedding
from tests.answering import Answering, answer
from tests.world import MODEL, World


def numbers(item: str | list[int]) -> list[float]:
    return list(struct.unpack("<8f", embedding(item)))


def set_kind(world: World, kind: str) -> None:
    with world.database.begin() as session:
        session.execute(update(ModelRow).values(kind=kind))


FORMS: tuple[tuple[Any, list[Any]], ...] = (
    ("a wheel", ["a wheel"]),
    (["a wheel", "a mill"], ["a wheel", "a mill"]),
    ([5, 6], [[5, 6]]),
    ([[5, 6], [7]], [[5, 6], [7]]),
)


@pytest.mark.parametrize("encoding_format", ["float", "base64", openai.omit])
def test_every_form_of_input_is_embedded_in_every_encoding(answering: Answering, encoding_format: Any) -> None:
    for given, items in FORMS:
        # When
        created = answering.client.embeddings.create(
            model=MODEL, input=given, encoding_format=encoding_format, user="somebody"
        )
        # Then
        found: list[Any] = [item.embedding for item in created.data]
        if encoding_format == "base64":  # asked for by name, it is handed on as it came
            found = [list(struct.unpack("<8f", base64.b64decode(item))) for item in found]
        assert found == [numbers(item) for item in items]
        assert [item.index for item in created.data] == list(range(len(items)))
        assert created.model == MODEL
        assert created.usage.prompt_tokens == created.usage.total_tokens > 0


def test_what_cannot_be_embedded_is_refused_in_the_shape_of_openai(answering: Answering) -> None:
    with pytest.raises(openai.BadRequestError, match="got nothing") as empty:
        answering.client.embeddings.create(model=MODEL, input=["a", ""])
    assert empty.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="1 to 2048 inputs"):
        answering.client.embeddings.create(model=MODEL, input=["a"] * 2049)
    with pytest.raises(openai.NotFoundError, match="nobody") as missing:
        answering.client.embeddings.create(model="nobody", input="a")
    assert missing.value.code == "model_not_found"


def test_a_model_that_answers_prompts_is_not_asked_to_embed(answering: Answering) -> None:
    set_kind(answering.world, GENERATOR)
    with pytest.raises(openai.BadRequestError, match="does not embed texts") as refused:
        answering.client.embeddings.create(model=MODEL, input="a")
    assert (refused.value.code, refused.value.param) == ("unsupported_model", "model")


def test_a_model_that_embeds_is_not_asked_to_answer_prompts(answering: Answering) -> None:
    set_kind(answering.world, EMBEDDER)
    with pytest.raises(openai.BadRequestError, match="does not answer prompts"):
        answering.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])


def embedding_file(*inputs: object, model: str = MODEL) -> bytes:
    rows = [
        {
            "custom_id": f"row-{index}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": model, "input": given, "encoding_format": "base64" if index % 2 else "float"},
        }
        for index, given in enumerate(inputs)
    ]
    return b"\n".join(json.dumps(row).encode() for row in rows)


def submit(answering: Answering, content: bytes) -> str:
    file = answering.client.files.create(file=("in.jsonl", content), purpose="batch")
    created = answering.client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    return created.id


def test_embeddings_run_as_a_batch(answering: Answering) -> None:
    # Given
    batch_id = submit(answering, embedding_file("a wheel", ["a", "b"], [5, 6]))
    # When
    job = answering.finish(batch_id)
    # Then
    assert job.state == "completed"
    assert (job.num_completed, job.num_failed) == (3, 0)
    bodies = [line["response"]["body"] for line in answering.world.read_lines(job.output_file_id)]  # type: ignore[index]
    assert bodies[0]["data"][0]["embedding"] == numbers("a wheel")
    assert [base64.b64decode(item["embedding"]) for item in bodies[1]["data"]] == [embedding("a"), embedding("b")]
    assert bodies[2]["data"][0]["embedding"] == numbers([5, 6])
    assert bodies[0]["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert job.prompt_tokens == 6


def test_a_bad_line_of_embeddings_refuses_the_file_with_its_number(answering: Answering) -> None:
    # Given
    batch_id = submit(answering, embedding_file("a wheel", "", ["x", 5]))
    # When
    job = answering.finish(batch_id)
    # Then
    assert job.state == "failed"
    assert job.errors is not None
    assert [(error["line"], error["param"]) for error in job.errors["data"]] == [(2, "body.input"), (3, "body.input")]


@pytest.fixture
def embedder(world: World, tmp_path: Path) -> Iterator[Answering]:
    """A real embedding model, of two layers and random weights."""
    pytest.importorskip("sentence_transformers")
    from tests.embedding_models import save_embedding_model  # torch

    with answer(world, f"ipc://{tmp_path}/engine.sock", {MODEL: str(save_embedding_model(tmp_path / "model"))}) as it:
        yield it


def test_a_real_model_embeds_and_says_what_it_is(embedder: Answering) -> None:
    # When
    whole = embedder.client.embeddings.create(model=MODEL, input=["w1 w2 w3", "w4"])
    short = embedder.client.embeddings.create(model=MODEL, input="w1 w2 w3", dimensions=8)
    # Then
    assert [len(item.embedding) for item in whole.data] == [32, 32]
    assert whole.usage.total_tokens == 3 + 1 + 2 * 2  # and the tokens around each
    length = sum(number**2 for number in whole.data[0].embedding[:8]) ** 0.5
    assert short.data[0].embedding == pytest.approx([n / length for n in whole.data[0].embedding[:8]], abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="expected 1 to 32"):
        embedder.client.embeddings.create(model=MODEL, input="w1", dimensions=64)
    with pytest.raises(openai.BadRequestError, match="it embeds texts"):
        embedder.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert embedder.world.services.chunks is not None
    assert embedder.world.services.chunks.model_kinds() == {MODEL: EMBEDDER}
