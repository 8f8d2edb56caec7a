import pytest

from api.home import duration, rate


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7100.0, "118 min"), (7200.0, "2 h"), (400_000.0, "5 d")],
)
def test_a_duration_is_shown_in_a_unit_that_fits(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("per_second", "shown"), [(0.0, "0"), (0.033, "0.033"), (3.25, "3.2"), (12_345.6, "12,346")])
def test_a_rate_is_shown_as_exactly_as_it_is_of_use(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown
