"""The whole line as its users see it: a real `millrace up`, the official client, every row compared. The null model
answers with a hash of the prompt, so a wrong, lost or doubled answer shows. `tests/chaos` kills processes meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from tests.null_answers import chat_rows as rows_for
from tests.null_answers import encode, expected_answer
from tests.polling import until
from tests.running import Millrace, running_millrace
from workers.instance import Instance

QUICK, SLOW = "null", "slow"
ENDED = {"completed", "failed", "cancelled", "expired"}


@pytest.fixture(scope="module")
def millrace() -> Iterator[Millrace]:
    models = f"{QUICK}=null:,{SLOW}=null:0.25"
    with running_millrace(
        with_flower=True, models=models, chunk_rows=50, lease_seconds=3.0, reconcile_seconds=1.0
    ) as started:
        yield started


def chat_rows(count: int, model: str = QUICK) -> list[dict[str, object]]:
    return rows_for(count, model)


def submit(client: OpenAI, content: bytes, endpoint: str = "/v1/chat/completions") -> Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
        metadata={"from": "a test"},
    )


def ended(client: OpenAI, batch_id: str) -> Batch:
    until(lambda: client.batches.retrieve(batch_id).status in ENDED)
    return client.batches.retrieve(batch_id)


def num_done(client: OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def lines(client: OpenAI, file_id: str | None) -> list[dict[str, object]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).iter_lines()]


def assert_every_row_is_answered(millrace: Millrace, batch: Batch, rows: list[dict[str, object]]) -> None:
    """Each row once, with its own answer; the counters and the outcomes in the database say the same."""
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(rows), 0)
    answers = {}
    for line in lines(millrace.client, batch.output_file_id):
        assert line["custom_id"] not in answers, "answered twice"
        answers[line["custom_id"]] = line["response"]["body"]["choices"][0]["message"]["content"]  # type: ignore[index]
    assert answers == {row["custom_id"]: expected_answer(row) for row in rows}
    with millrace.database() as connection:
        counted = connection.execute(
            "SELECT count(*), count(DISTINCT index) FROM outcomes o JOIN jobs j ON j.id = o.job_id"
            " WHERE j.public_id = %s",
            [batch.id],
        ).fetchone()
    assert counted == (len(rows), len(rows))


def test_a_batch_file_goes_in_and_every_answer_comes_out(millrace: Millrace) -> None:
    # Given
    rows = chat_rows(1000)
    # When
    batch = ended(millrace.client, submit(millrace.client, encode(rows)).id)
    # Then
    assert_every_row_is_answered(millrace, batch, rows)
    assert batch.metadata == {"from": "a test"}
    assert batch.usage is not None
    assert batch.usage.output_tokens == 1000
    assert batch.completed_at is not None


def test_text_completions_run_as_batches_too(millrace: Millrace) -> None:
    # Given
    row: dict[str, object] = {
        "custom_id": "only",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": QUICK, "prompt": "once upon a time"},
    }
    # When
    batch = ended(millrace.client, submit(millrace.client, encode([row]), "/v1/completions").id)
    # Then
    (line,) = lines(millrace.client, batch.output_file_id)
    body = line["response"]["body"]  # type: ignore[index]
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == expected_answer(row)


def test_a_worker_that_was_paused_until_everybody_gave_it_up_works_again(millrace: Millrace) -> None:
    # Given a worker that stops in the middle of its chunks, longer than its lease and the patience of its engine
    rows = chat_rows(1000, SLOW)
    batch_id = submit(millrace.client, encode(rows)).id
    until(lambda: num_done(millrace.client, batch_id) > 50)
    worker = millrace.process("batch-cpu@")
    engine_log = Instance.of(millrace.settings).log_path("engine-cpu")
    num_silences = engine_log.read_text().count("was silent")
    worker.suspend()
    until(lambda: engine_log.read_text().count("was silent") > num_silences)
    # When
    worker.resume()
    # Then
    assert_every_row_is_answered(millrace, ended(millrace.client, batch_id), rows)


def test_a_cancelled_batch_stops_and_keeps_its_finished_rows(millrace: Millrace) -> None:
    # Given
    rows = chat_rows(5000, SLOW)
    batch_id = submit(millrace.client, encode(rows)).id
    until(lambda: num_done(millrace.client, batch_id) > 0)
    # When
    millrace.client.batches.cancel(batch_id)
    # Then
    batch = ended(millrace.client, batch_id)
    assert batch.status == "cancelled"
    answers, failures = lines(millrace.client, batch.output_file_id), lines(millrace.client, batch.error_file_id)
    assert 0 < len(answers) < len(rows)
    assert len(answers) + len(failures) == len(rows)
    assert {line["error"]["code"] for line in failures} == {"batch_cancelled"}  # type: ignore[index]
    with pytest.raises(openai.ConflictError, match="cancelled"):
        millrace.client.batches.cancel(batch_id)


def test_a_bad_file_is_refused_with_line_numbers_and_the_next_batch_runs(millrace: Millrace) -> None:
    # Given
    good = chat_rows(2)
    bad = encode([good[0]]) + b"no json\n" + encode([good[0]])
    # When
    refused = ended(millrace.client, submit(millrace.client, bad).id)
    # Then
    assert refused.status == "failed"
    assert refused.errors is not None
    assert [(error.code, error.line) for error in refused.errors.data or []] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
    ]
    # When
    batch = ended(millrace.client, submit(millrace.client, encode(good)).id)
    # Then
    assert_every_row_is_answered(millrace, batch, good)


def test_batches_are_listed_in_pages_newest_first(millrace: Millrace) -> None:
    # Given
    ids = [ended(millrace.client, submit(millrace.client, encode(chat_rows(1))).id).id for _ in range(3)]
    # When
    first = millrace.client.batches.list(limit=2)
    # Then
    assert [batch.id for batch in first.data] == [ids[2], ids[1]]
    assert first.has_more
    assert first.get_next_page().data[0].id == ids[0]


def test_models_and_files_are_there_for_the_official_client(millrace: Millrace) -> None:
    # Given
    client = millrace.client
    file = client.files.create(file=("notes.jsonl", b"{}\n"), purpose="batch")
    # Then
    assert {model.id for model in client.models.list().data} == {QUICK, SLOW}
    assert client.models.retrieve(QUICK).owned_by == "millrace"
    assert client.files.retrieve(file.id).filename == "notes.jsonl"
    assert file.id in {listed.id for listed in client.files.list().data}
    assert client.files.content(file.id).content == b"{}\n"
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_one_question_is_answered_at_once(millrace: Millrace) -> None:
    # When
    answer = millrace.client.chat.completions.create(
        model=QUICK, messages=[{"role": "user", "content": "question 7"}], max_tokens=5
    )
    # Then
    assert answer.choices[0].message.content == expected_answer(chat_rows(8)[7])
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_bad_calls_get_an_answer_in_the_shape_of_openai(millrace: Millrace) -> None:
    client = millrace.client
    message = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError, match="nobody") as missing_model:
        client.chat.completions.create(model="nobody", messages=message)  # type: ignore[arg-type]
    assert missing_model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong_type:
        client.chat.completions.create(model=QUICK, messages=message, temperature="hot")  # type: ignore[call-overload]
    assert wrong_type.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="file-nobody"):
        client.batches.create(input_file_id="file-nobody", endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        client.batches.create(input_file_id="x", endpoint="/v1/moderations", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=b"x", purpose="fine-tune")
    with pytest.raises(openai.NotFoundError, match="no route"):
        client.moderations.create(model=QUICK, input="x")


def test_a_file_over_the_limit_is_refused_before_it_is_stored(millrace: Millrace, tmp_path: Path) -> None:
    # Given 201 MB that take no space
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        file.truncate(201 * 1024 * 1024)
    # When / Then
    with path.open("rb") as content, pytest.raises(openai.APIStatusError, match="at most 209,715,200 bytes") as refused:
        millrace.client.files.create(file=content, purpose="batch")
    assert refused.value.status_code == 413


def test_flower_shows_the_chunks_by_name_and_arguments(millrace: Millrace) -> None:
    # Given
    batch = ended(millrace.client, submit(millrace.client, encode(chat_rows(60))).id)
    assert batch.status == "completed"
    url = f"http://127.0.0.1:{millrace.settings.flower_port}/tasks/datatable"
    order: dict[str, str | int] = {"draw": 1, "start": 0, "length": 100, "search[value]": batch.id}
    query = {**order, "order[0][column]": 0, "order[0][dir]": "desc", "columns[0][data]": "received"}

    def shown() -> bool:
        tasks = httpx.get(url, params=query, timeout=10).json()["data"]
        chunks = {task["kwargs"] for task in tasks if task["name"] == "millrace.run_chunk"}
        return any(f"'chunk': '{batch.id}#1'" in kwargs and f"'model': '{QUICK}'" in kwargs for kwargs in chunks)

    # When / Then
    until(shown)
