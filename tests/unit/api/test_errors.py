import json
from collections.abc import Callable
from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from starlette.testclient import TestClient

from api.errors import RequestTooLarge, error_response, install, status_of
from core.errors import (
    ConfigurationError,
    Conflict,
    ContextLengthExceeded,
    EngineLost,
    Interrupted,
    InvalidRequest,
    LeaseLost,
    MillraceError,
    ModelFailure,
    NotFound,
    Overloaded,
    Unavailable,
    Unsupported,
)


def client_of(route: Callable[..., object]) -> TestClient:
    app = FastAPI()
    app.get("/route")(route)
    install(app)
    return TestClient(app, raise_server_exceptions=False)


def raising(error: Exception) -> TestClient:
    def route() -> None:
        raise error

    return client_of(route)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("m"), 400),
        (ContextLengthExceeded("m"), 400),
        (Unsupported("m"), 400),
        (NotFound("m"), 404),
        (Conflict("m"), 409),
        (LeaseLost("m"), 409),
        (Overloaded("m"), 429),
        (Unavailable("m"), 503),
        (EngineLost("m"), 503),
        (Interrupted("m"), 503),
        (ModelFailure("m"), 500),
        (ConfigurationError("m"), 500),
    ],
)
def test_every_error_has_its_status(error: MillraceError, status: int) -> None:
    assert status_of(error) == status


def test_an_error_is_answered_in_openais_shape() -> None:
    # When
    response = raising(InvalidRequest("expected this", param="model", code="model_not_found")).get("/route")

    # Then
    assert response.status_code == 400
    assert response.json() == {
        "error": {
            "message": "expected this",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_the_type_follows_the_status(status: int, kind: str) -> None:
    assert json.loads(bytes(error_response(status, "code", "message").body))["error"]["type"] == kind


def test_what_is_away_says_in_whole_seconds_when_to_come_back() -> None:
    assert raising(Unavailable("away", retry_after_seconds=1.2)).get("/route").headers["Retry-After"] == "2"
    assert "Retry-After" not in raising(InvalidRequest("wrong")).get("/route").headers


def test_an_unknown_route_is_answered_in_the_same_shape() -> None:
    response = raising(InvalidRequest("m")).get("/elsewhere")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


def test_another_method_is_refused_in_the_same_shape() -> None:
    response = raising(InvalidRequest("m")).delete("/route")
    assert response.status_code == 405
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_parameter_of_the_wrong_type_is_named() -> None:
    # Given
    def route(limit: Annotated[int, Query(ge=1)]) -> int:
        return limit

    # When
    response = client_of(route).get("/route", params={"limit": "many"})

    # Then
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "limit"


def test_a_defect_tells_nothing_of_its_inside() -> None:
    # When
    response = raising(RuntimeError("a secret")).get("/route")

    # Then
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_body_that_is_too_large_is_an_answer_in_the_same_shape() -> None:
    # When
    response = raising(RequestTooLarge("expected a body of at most 5 bytes")).get("/route")
    # Then
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert response.json()["error"]["message"] == "expected a body of at most 5 bytes"
