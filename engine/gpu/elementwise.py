"""What `engine.native` offers on a CPU, for layers on a GPU: RMS norm and rotary embedding, by Triton.

`engine.models.layers.substitution` decides which layers of a model they replace, and proves it. Linear layers stay
torch's, whose products cannot be bettered here.
"""

import torch
import triton
from torch import Tensor

from engine.gpu.kernels import rms_norm_kernel, rotate_kernel

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ELEMENTS_PER_WARP = 512


class TorchProducts:
    """No linear layer is packed."""

    def can_pack(self, weight: Tensor, bias: Tensor | None) -> bool:
        return False


class GpuElementwise:
    """device_type: `cuda`; tests, whose interpreter works on a CPU, say `cpu`."""

    def __init__(self, device_type: str = "cuda") -> None:
        self.products = TorchProducts()
        self._device_type = device_type

    def can_take(self, *tensors: Tensor) -> bool:
        """One dtype that the kernels know, on the device, elements of the last dimension side by side."""
        dtype = tensors[0].dtype
        return dtype in _DTYPES and all(
            tensor.dtype == dtype and tensor.device.type == self._device_type and tensor.stride(-1) == 1
            for tensor in tensors
        )

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, *, is_offset: bool = False) -> Tensor:
        """weight * round(x / sqrt(mean(x²) + epsilon)), as Llama's; `is_offset`: (1 + weight) times it, as Gemma's.

        x: (…, dim), rows that lie at equal distances. weight: (dim,). To (…, dim), contiguous.
        """
        rows = x.view(-1, x.shape[-1])
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if len(rows):
            block = triton.next_power_of_2(rows.shape[1])
            rms_norm_kernel[(len(rows),)](
                out, rows, weight, rows.stride(0), epsilon,
                WIDTH=rows.shape[1], BLOCK=block, IS_OFFSET=is_offset,
                num_warps=max(1, min(16, block // _ELEMENTS_PER_WARP)),
            )  # fmt: skip
        return out

    def rotate_(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """heads * cosines + rotate_half(heads) * sines in place, each product and the sum rounded.

        heads: (1, heads, tokens, head_dim), any strides but the last. cosines, sines: (1, tokens, dim), dim even and
        at most head_dim, with the same strides; only the first `dim` of a head are turned.
        """
        half = cosines.shape[-1] // 2
        block_heads, block_half = triton.next_power_of_2(heads.shape[1]), triton.next_power_of_2(half)
        if heads.shape[2]:
            rotate_kernel[(heads.shape[2],)](
                heads, cosines, sines, heads.stride(2), heads.stride(1), cosines.stride(-2), heads.shape[1],
                HALF=half, BLOCK_HEADS=block_heads, BLOCK_HALF=block_half,
                num_warps=max(1, min(8, block_heads * block_half // _ELEMENTS_PER_WARP)),
            )  # fmt: skip
        return heads
