"""What a body of `/api/v1/jobs` may ask for."""

import json

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from api.native.bodies import AnyJobBody, InferenceBody
from api.native.bodies.reading import SLICE_REQUESTS, job_schema, read_job
from core.errors import InvalidRequest

BODIES: TypeAdapter[object] = TypeAdapter(AnyJobBody)


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "benchmark", "prompt_tokens": 1_000_000},
        {"kind": "benchmark", "prompt_tokens": 100_000, "num_requests": 100_000},
        {"kind": "benchmark", "workload": "long", "num_requests": 100_000},
        {"kind": "warming", "max_tokens": 2**70},
        {"kind": "quantization", "method": "nf4", "name": "a\0b"},
    ],
)
def test_more_than_a_machine_can_do_or_keep_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BODIES.validate_python({"model": "m", **body})


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "benchmark", "workload": "long", "num_requests": 1_000},
        {"kind": "quantization", "method": "nf4", "name": "müller v2"},
    ],
)
def test_what_it_can_is_taken(body: dict[str, object]) -> None:
    BODIES.validate_python({"model": "m", **body})


def inference(requests: list[object]) -> bytes:
    return json.dumps({"kind": "inference", "model": "m", "requests": requests}).encode()


def test_many_requests_are_read_in_their_order() -> None:
    # Given
    requests: list[object] = [{"custom_id": str(number), "body": {"n": number}} for number in range(SLICE_REQUESTS + 3)]
    # When
    job = read_job(inference(requests))
    # Then
    assert isinstance(job, InferenceBody)
    assert [request.body["n"] for request in job.requests or ()] == list(range(SLICE_REQUESTS + 3))


def test_a_wrong_request_is_named_by_its_number_among_all() -> None:
    # Given
    requests: list[object] = [{"body": {}} for _ in range(SLICE_REQUESTS)]
    # When
    with pytest.raises(RequestValidationError) as refused:
        read_job(inference([*requests, {"body": {}, "url": "/v1"}]))
    # Then
    (error,) = refused.value.errors()
    assert error["loc"] == ("body", "inference", "requests", SLICE_REQUESTS, "url")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"kind":', b'{"kind": nonsense}', b"\xff"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_job(body)


def test_the_document_has_every_kind_without_references() -> None:
    # When
    schema = job_schema()
    # Then
    assert len(schema["oneOf"]) == 4
