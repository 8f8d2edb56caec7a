"""The kernels as this machine's compiler makes them."""

import shutil

import pytest

from engine.native.kernels import Kernels, load_kernels

COMPILERS = ("cc", "gcc", "clang")


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """Absent only where there is no compiler at all: kernels that do not compile fail the tests."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C compiler on this machine")
    loaded = load_kernels()
    assert loaded is not None
    return loaded
