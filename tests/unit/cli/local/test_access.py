from pathlib import Path

import pytest

from cli.local.access import check_access, effective_auth
from cli.options import InvalidOption
from core.settings import Settings

OWN_SERVERS = {"database_url": "postgresql://db", "redis_url": "redis://redis"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), "local"),
        (Settings(host="::1"), "local"),
        (Settings(host="0.0.0.0"), "required"),
        (Settings(trusted_hosts="llm.example"), "required"),
        (Settings(database_url="postgresql://db"), "required"),
        (Settings(redis_url="redis://redis"), "required"),
        (Settings(auth="required"), "required"),
        (Settings(auth="local", database_url="postgresql://db"), "local"),
    ],
    ids=repr,
)
def test_a_key_is_needed_wherever_somebody_else_may_be_meant(settings: Settings, expected: str) -> None:
    assert effective_auth(settings) == expected


def test_the_first_start_is_on_loopback(tmp_path: Path) -> None:
    # Given
    settings = Settings(host="0.0.0.0", data_dir=str(tmp_path))
    # When / Then
    with pytest.raises(InvalidOption, match="expected a loopback address"):
        check_access(settings)
    # When
    (tmp_path / "api-key").write_text("mr_…")
    # Then
    check_access(settings)


def test_half_a_certificate_is_refused() -> None:
    with pytest.raises(InvalidOption, match="expected both or neither"):
        check_access(Settings(tls_certificate="/certificate.pem"))
