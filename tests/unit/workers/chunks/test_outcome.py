"""Answers and failures as they are stored: OpenAI's bodies, the engine's times, the right statuses."""

import json

import pytest

from core.errors import InvalidRequest
from core.protocol import Failed, Finished, Timing, Usage
from db.chunks import Lease
from workers.chunks import outcome

FINISHED = Finished("id", "hello", "stop", Usage(3, 2), Timing(0.1, 0.2, 0.5))


def lease(endpoint: str) -> Lease:
    return Lease(
        1, "owner", 1, 7, "batch_abc", "default", 0, 0, 10, "test/model", endpoint, 0, None, 0, None, "batch", 15.0
    )


def test_a_chat_answer_is_a_chat_completion() -> None:
    # When
    stored = outcome.of_finished(lease("/v1/chat/completions"), 4, FINISHED, created=1000)
    # Then
    assert (stored.index, stored.status_code, stored.prompt_tokens, stored.completion_tokens) == (4, 200, 3, 2)
    assert (stored.queue_seconds, stored.first_token_seconds, stored.total_seconds) == (0.1, 0.2, 0.5)
    assert json.loads(stored.body) == {
        "id": "chatcmpl-batch_abc-4",
        "object": "chat.completion",
        "created": 1000,
        "model": "test/model",
        "choices": [
            {
                "index": 0,
                "logprobs": None,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "hello", "refusal": None},
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_text_answer_is_a_text_completion() -> None:
    body = json.loads(outcome.of_finished(lease("/v1/completions"), 0, FINISHED, created=0).body)
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "hello"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("context_length_exceeded", 400, "invalid_request_error"),
        ("invalid_request", 400, "invalid_request_error"),
        ("model_not_found", 404, "invalid_request_error"),
        ("model_failure", 500, "server_error"),
        ("deadline_exceeded", 504, "server_error"),
        ("something_new", 500, "server_error"),
    ],
)
def test_a_failure_has_the_status_of_its_code(code: str, status: int, kind: str) -> None:
    # When
    stored = outcome.of_failed(2, Failed("id", code, "what came of it"))
    # Then
    assert stored.status_code == status
    error = {"message": "what came of it", "type": kind, "param": None, "code": code}
    assert json.loads(stored.body) == {"error": error}


def test_a_refused_row_names_its_field() -> None:
    stored = outcome.of_invalid(0, InvalidRequest("wrong", param="temperature"))
    assert json.loads(stored.body)["error"]["param"] == "temperature"


def test_a_row_whose_engine_crashed_too_often_says_how_often() -> None:
    stored = outcome.of_crashes(0, 3)
    assert stored.status_code == 500
    assert "3 times" in json.loads(stored.body)["error"]["message"]
