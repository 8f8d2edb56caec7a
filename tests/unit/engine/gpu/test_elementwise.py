import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.gpu.elementwise import GpuElementwise
from engine.gpu.kernels import rms_norm_kernel, rotate_kernel
from tests.triton_compiling import compile_kernel

HERE = Path(__file__).parent


def test_kernels_agree_with_transformers_in_tritons_interpreter() -> None:
    # When: in a process of its own, since Triton decides at its import
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_elementwise.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # Then
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) == 9
    assert "skipped" not in done.stdout


def test_what_lies_elsewhere_or_has_another_dtype_is_left_to_torch() -> None:
    kernels = GpuElementwise("cpu")
    assert kernels.can_take(torch.zeros(2, 3), torch.zeros(3))
    assert not kernels.can_take(torch.zeros(2, 3), torch.zeros(3, dtype=torch.bfloat16))
    assert not kernels.can_take(torch.zeros(2, 3, dtype=torch.float64))
    assert not kernels.can_take(torch.zeros(3, 2).T)
    assert not GpuElementwise().can_take(torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_kernels_compile_for_a_gpu_that_is_not_here(dtype: str) -> None:
    # Given
    types = dict.fromkeys(("out", "rows", "weight", "heads", "cosines", "sines"), f"*{dtype}")
    shape = {"HALF": 64, "BLOCK_HEADS": 16, "BLOCK_HALF": 64}
    # When
    compiled = [
        *(
            compile_kernel(
                rms_norm_kernel, {**types, "epsilon": "fp32"}, {"WIDTH": 1000, "BLOCK": 1024, "IS_OFFSET": is_offset}
            )
            for is_offset in (False, True)
        ),
        compile_kernel(rotate_kernel, types, shape),
    ]
    # Then
    assert all(kernel.asm["cubin"] for kernel in compiled)
