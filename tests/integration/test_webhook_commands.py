"""`millrace webhooks` against the API over the real servers."""

import pytest

from cli.client import RequestFailed, Server
from cli.webhooks import endpoints as webhooks
from core.webhooks.events import EventType
from tests.serving import serving
from tests.world import World


def test_an_endpoint_is_created_listed_and_removed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(world.services.settings) as url:
        # When
        webhooks.create(Server(url), "https://example.com/hook", "nightly", [EventType.BATCH_COMPLETED])
        created = capsys.readouterr().out
        endpoint_id = created.split()[0]
        webhooks.list_endpoints(Server(url))
        listed = capsys.readouterr().out
        webhooks.list_deliveries(Server(url), endpoint_id)
        webhooks.remove(Server(url), endpoint_id)
        capsys.readouterr()
        webhooks.list_endpoints(Server(url))
        left = capsys.readouterr().out
    # Then
    assert "whsec_" in created
    assert "nightly" in listed
    assert "whsec_" not in listed
    assert "nightly" not in left


def test_a_refusal_is_told_in_the_words_of_the_server(world: World) -> None:
    with serving(world.services.settings) as url, pytest.raises(RequestFailed, match="public address"):
        webhooks.create(Server(url), "https://10.0.0.1/hook", "nightly", [EventType.BATCH_COMPLETED])
