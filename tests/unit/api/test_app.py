"""What the API's parts have room for."""

from api.app import build_context
from core.settings import Settings


def test_everybody_who_may_wait_has_a_connection_to_redis() -> None:
    # Given
    settings = Settings(database_url="postgresql://nobody@localhost/nothing", max_waiting_requests=500)
    # When
    context = build_context(settings)
    # Then
    assert context.redis.connection_pool.max_connections > 500
