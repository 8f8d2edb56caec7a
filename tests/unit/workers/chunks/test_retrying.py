import pytest

from core.protocol import Failed
from db.chunks import Request
from workers.chunks.retrying import LONGEST_DELAY_SECONDS, Verdict, retry, verdict


@pytest.mark.parametrize(
    ("code", "is_retryable", "num_attempts", "is_online", "expected"),
    [
        ("not_received", True, 0, False, Verdict.SEND_AGAIN),
        ("engine_lost", True, 0, True, Verdict.GIVE_BACK),
        ("model_not_loaded", True, 0, False, Verdict.GIVE_BACK),
        ("model_not_loaded", True, 0, True, Verdict.FAIL),
        ("model_failure", False, 0, False, Verdict.TRY_LATER),
        ("model_failure", False, 1, False, Verdict.TRY_LATER),
        ("model_failure", False, 2, False, Verdict.FAIL),
        ("model_failure", False, 0, True, Verdict.FAIL),
        ("something_new", True, 0, False, Verdict.TRY_LATER),
        ("context_length_exceeded", False, 0, False, Verdict.FAIL),
    ],
)
def test_what_a_failure_deserves(
    code: str, is_retryable: bool, num_attempts: int, is_online: bool, expected: Verdict
) -> None:
    # Given
    failure = Failed("id", code, "why", is_retryable=is_retryable)
    # When / Then
    assert verdict(failure, Request(0, b"{}", num_attempts), 3, is_online=is_online) is expected


@pytest.mark.parametrize(("num_attempts", "chance", "seconds"), [(0, 0.0, 1.0), (0, 0.5, 2.0), (3, 0.5, 16.0)])
def test_each_wait_is_twice_the_one_before_and_jittered(num_attempts: int, chance: float, seconds: float) -> None:
    # When
    made = retry(Failed("id", "model_failure", "why"), Request(7, b"{}", num_attempts), 2.0, chance)
    # Then
    assert (made.index, made.num_attempts, made.code, made.message) == (7, num_attempts + 1, "model_failure", "why")
    assert made.delay_seconds == seconds


def test_no_wait_grows_without_a_bound() -> None:
    # When
    made = retry(Failed("id", "model_failure", "why"), Request(7, b"{}", 60), 2.0, 0.0)
    # Then
    assert made.delay_seconds == LONGEST_DELAY_SECONDS / 2
