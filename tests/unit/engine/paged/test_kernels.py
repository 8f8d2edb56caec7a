import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.paged import kernels
from engine.paged.batch import QUERIES_PER_BLOCK
from engine.paged.storage import PAGE_SIZE
from engine.paged.triton_attention import Tile
from tests.triton_compiling import SHARED_BYTES, compile_kernel

HERE = Path(__file__).parent
TILES = {
    "Qwen3 0.6B": ("bf16", Tile(128, 128, kv_heads=8, group=2, itemsize=2)),
    "Llama 8B": ("bf16", Tile(128, 128, kv_heads=8, group=4, itemsize=2)),
    "Gemma, wide heads": ("fp16", Tile(256, 256, kv_heads=4, group=2, itemsize=2)),
    "DeepSeek, keys wider than values": ("bf16", Tile(192, 128, kv_heads=16, group=1, itemsize=2)),
    "odd heads in float32": ("fp32", Tile(40, 40, kv_heads=2, group=5, itemsize=4)),
}


def test_kernels_agree_with_plain_torch_in_tritons_interpreter() -> None:
    # When: in a process of its own, since Triton decides at its import
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_kernels.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # Then
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 24
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(("dtype", "tile"), TILES.values(), ids=TILES.keys())
def test_kernels_compile_for_a_gpu_that_is_not_here_and_fit_into_it(dtype: str, tile: Tile) -> None:
    # Given what the launches would say of such a layer, with a window and a softcap
    layer: dict[str, Any] = {
        "KV_HEADS": tile.kv_heads, "GROUP": tile.group, "KEY_DIM": tile.key_dim, "VALUE_DIM": tile.value_dim,
        "PAGE_SIZE": PAGE_SIZE, "BLOCK_KEY": tile.block_key, "BLOCK_VALUE": tile.block_value,
        "BLOCK_COLUMNS": tile.block_columns, "HAS_WINDOW": True, "HAS_SOFTCAP": True, "UPCASTS": False,
    }  # fmt: skip
    stages = {"num_stages": tile.num_stages}
    split = {**layer, "BLOCK_GROUP": tile.block_group, "IS_SPLIT": True}
    lines = {"KEY_DIM": tile.key_dim, "VALUE_DIM": tile.value_dim, "BLOCK_KEY": 256, "BLOCK_VALUE": 256}
    merge = {"VALUE_DIM": tile.value_dim, "BLOCK_VALUE": tile.block_value, "BLOCK_SPLITS": 32}
    # When they are compiled
    compiled = [
        compile_kernel(kernels.decode_kernel, types(dtype), split, num_warps=4, **stages),
        compile_kernel(kernels.decode_kernel, types(dtype), {**split, "IS_SPLIT": False}, num_warps=4, **stages),
        compile_kernel(kernels.merge_kernel, types(dtype), merge, num_warps=4),
        compile_kernel(
            kernels.prompt_kernel, types(dtype), {**layer, "BLOCK_QUERIES": QUERIES_PER_BLOCK},
            num_warps=tile.num_prompt_warps, **stages,
        ),
        compile_kernel(kernels.write_kernel, types(dtype), lines, num_warps=1),
    ]  # fmt: skip
    # Then there is machine code that fits, and sixteen-bit prompts use Hopper's own products
    assert all(kernel.asm["cubin"] for kernel in compiled)
    assert max(kernel.metadata.shared for kernel in compiled) <= SHARED_BYTES
    assert ("wgmma" in compiled[3].asm["ptx"]) == (dtype != "fp32")


def types(dtype: str) -> dict[str, str]:
    own = dict.fromkeys(("out", "query", "key", "value", "keys", "values"), f"*{dtype}")
    sums = dict.fromkeys(("partial_sums", "partial_highest", "partial_total"), "*fp32")
    places = dict.fromkeys(("rows", "lengths", "cells", "blocks"), "*i64")
    return {**own, **sums, **places, "page_tables": "*i32", "scale": "fp32", "softcap": "fp32"}
