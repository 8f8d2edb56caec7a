"""The arithmetic is right without wide registers and without an instruction for bfloat16, as on another processor.

The same tests run in a process of their own on kernels that are compiled for less than this machine can do.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUBJECTS = ("attention", "elementwise", "products", "decoder")
SECONDS = 240

is_x86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.skipif(not is_x86, reason="the options are those of x86")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx"])
def test_the_kernels_are_right_with_less(flags: str) -> None:
    # Given a compiler that leaves instructions out
    environment = {**os.environ, "CC": f"cc {flags}", "OMP_NUM_THREADS": "1"}
    tests = [str(HERE / f"test_{subject}.py") for subject in SUBJECTS]
    # When the tests of the kernels run on what it makes
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    # Then they pass
    assert done.returncode == 0, done.stdout[-4000:]
