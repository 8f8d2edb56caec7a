from datetime import timedelta
from random import Random

from core.webhooks.retries import LONGEST_SECONDS, MAX_ATTEMPTS, delay_after


def test_pauses_grow_to_a_bound_and_are_never_the_same() -> None:
    # When
    random = Random(1)
    delays = [delay_after(attempt, random) for attempt in range(1, MAX_ATTEMPTS)]
    # Then
    assert timedelta(seconds=5) <= delays[0] <= timedelta(seconds=10)
    assert max(delays) <= timedelta(seconds=LONGEST_SECONDS)
    assert len(set(delays)) == len(delays)
    assert timedelta(days=1) < sum(delays, timedelta()) < timedelta(days=3)
