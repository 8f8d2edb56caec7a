"""What a body of `/api/v1/jobs` may ask for."""

import pytest
from pydantic import TypeAdapter, ValidationError

from api.native.bodies import AnyJobBody

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
