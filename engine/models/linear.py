"""Linear layers whose bfloat16 weights lie in the order in which the CPU multiplies them.

`F.linear` on a CPU brings the weights into oneDNN's blocked order again at every call. For the few rows of a decode
step that costs as much as the product; done once at load time, products of 1 to 64 rows take half to nine tenths of the
time.
"""

from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 32  # a hint for oneDNN's choice of blocks; other numbers of rows are right as well


class PackedLinear(nn.Module):
    """Takes the place of a `Linear`, for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product


def pack_linears(model: Any) -> int:
    """Replaces every bfloat16 linear layer on the CPU, where this machine gains from it; returns how many.

    The plain weights are given back, but for those that an embedding shares.
    """
    if model.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0
    names = [name for name, module in model.named_modules() if _is_plain(module)]
    for name in names:
        model.set_submodule(name, PackedLinear(model.get_submodule(name)))
    return len(names)


def _is_plain(module: nn.Module) -> bool:
    """Subclasses (quantized layers, say) compute something else."""
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16
