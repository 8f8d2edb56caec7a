"""Compiles Triton kernels for a GPU that is not here: machine code comes out, nothing runs."""

from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024  # that a program may have there


def compile_kernel(kernel: Any, types: Mapping[str, str], constants: dict[str, Any], **options: int) -> Any:
    """types: of its other arguments; `i32` where one has none. Pointers and strides count as multiples of 16, as they
    nearly always are at a launch."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [place for place, name in enumerate(names) if signature[name][0] == "*" or name.endswith("_stride")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(source, target=HOPPER, options={**options, "enable_fp_fusion": True})
