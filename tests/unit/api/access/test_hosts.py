"""To which names requests may be addressed."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from api.access.hosts import TrustedHosts

ALLOWED = ("127.0.0.1", "[::1]", "llm.example", "*.inside.example")


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8700", True),
        ("[::1]:8700", True),
        ("LLM.example", True),
        ("a.inside.example:443", True),
        ("inside.example", False),
        ("evilinside.example", False),
        ("www.llm.example", False),
        ("llm.example@evil.example", False),
        ("llm.example, evil.example", False),
        ("evil.example", False),
        ("", False),
    ],
)
def test_only_names_that_are_known_are_let_in(host: str, is_allowed: bool) -> None:
    # Given
    client = TestClient(TrustedHosts(Starlette(), allowed=ALLOWED))
    # When
    answer = client.get("/", headers={"host": host})
    # Then
    assert (answer.status_code == 404) == is_allowed
    if not is_allowed:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_host"
