"""Freed memory stays with the process, so that the next step finds it."""

import platform
import resource
import subprocess
import sys

import pytest

NUM_BLOCKS, BLOCK_BYTES = 50, 8 << 20
PAGES = NUM_BLOCKS * BLOCK_BYTES // resource.getpagesize()
PROGRAM = f"""
import ctypes, resource
from engine.native.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({NUM_BLOCKS}):
    block = libc.malloc({BLOCK_BYTES})
    libc.memset(block, 1, {BLOCK_BYTES})
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_a_large_block_costs_its_page_faults_once() -> None:
    # When a process takes and gives back the same large block again and again
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    # Then the system cleared its pages once, not every time
    assert int(done.stdout) < 3 * PAGES / NUM_BLOCKS
