import pytest

from core.errors import ConfigurationError
from tasks import services


def test_a_process_without_services_says_how_workers_are_started() -> None:
    # Given
    services.uninstall()

    # Then
    with pytest.raises(ConfigurationError, match=r"celery -A workers\.boot worker"):
        services.current()
