"""One running Millrace for all tests here that strike one part at a time."""

from collections.abc import Iterator

import pytest

from tests.chaos.single import Single, running_single


@pytest.fixture(scope="package")
def single() -> Iterator[Single]:
    with running_single() as single:
        yield single
