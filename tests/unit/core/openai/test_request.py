import json

import pytest

from core.errors import InvalidRequest
from core.openai.completion import CHAT_ENDPOINT, TEXT_ENDPOINT
from core.openai.embedding import EMBEDDINGS_ENDPOINT
from core.openai.request import ENDPOINTS, check_kind, parse_request, to_message
from core.protocol import ANYTHING, EMBEDDER, GENERATOR, Embed, Generate

BODIES = {
    CHAT_ENDPOINT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    TEXT_ENDPOINT: {"model": "m", "prompt": "hi"},
    EMBEDDINGS_ENDPOINT: {"model": "m", "input": "hi"},
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_has_its_message(endpoint: str) -> None:
    # When
    request = parse_request(endpoint, json.dumps(BODIES[endpoint]).encode())
    message = to_message(request, "id", priority=2, prefix_scope="somebody")
    # Then
    assert isinstance(message, Embed if endpoint == EMBEDDINGS_ENDPOINT else Generate)
    assert (message.id, message.model, message.priority) == ("id", "m", 2)


def test_another_endpoint_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="/v1/moderations"):
        parse_request("/v1/moderations", b"{}")


@pytest.mark.parametrize(
    ("endpoint", "kind", "message"),
    [(CHAT_ENDPOINT, EMBEDDER, "it embeds texts"), (EMBEDDINGS_ENDPOINT, GENERATOR, "does not embed")],
)
def test_a_model_of_the_wrong_kind_is_refused(endpoint: str, kind: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        check_kind(endpoint, "m", kind)
    assert (refused.value.param, refused.value.code) == ("model", "unsupported_model")


@pytest.mark.parametrize("kind", [ANYTHING, None, ""])
def test_a_model_whose_kind_is_not_known_is_for_the_engine_to_judge(kind: str | None) -> None:
    for endpoint in ENDPOINTS:
        check_kind(endpoint, "m", kind)
