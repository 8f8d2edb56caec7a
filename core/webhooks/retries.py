"""When a message that did not arrive is tried again: after 10 s, then twice as long each time, up to six hours."""

from datetime import timedelta
from random import Random

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 6 * 3600.0
MAX_ATTEMPTS = 22  # the last one about two days after the first


def delay_after(attempt: int, random: Random) -> timedelta:
    """`attempt`: counted from 1. Jittered down to a half, so that what failed together does not come back together."""
    longest = min(FIRST_SECONDS * 2 ** (attempt - 1), LONGEST_SECONDS)
    return timedelta(seconds=longest * random.uniform(0.5, 1.0))
