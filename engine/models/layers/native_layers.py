"""Layers that take the place of a model's own and compute with the native kernels, for inference on a CPU only.

What they may replace is decided in `substitution`; here is how they compute.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.native.kernels import Kernels
from engine.native.products import Activation, PackedWeight, Products


class NativeLinear(nn.Module):
    """In place of a `Linear`."""

    def __init__(self, products: Products, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.packed = products.pack(linear.weight, linear.bias)
        self._products = products

    def forward(self, rows: Tensor) -> Tensor:
        return self._products.multiply(rows, (self.packed,))[0]


class SharedRows:
    """Linear layers that are called one after the other with the same tensor: the first call computes for all."""

    def __init__(self, products: Products, weights: Sequence[PackedWeight]) -> None:
        self._products = products
        self.weights = tuple(weights)
        self._rows: Tensor | None = None
        self._ready: dict[int, Tensor] = {}

    def product(self, index: int, rows: Tensor) -> Tensor:
        """Of the weight with this index. Every product is given away once, so that its taker may change it."""
        if rows is not self._rows or index not in self._ready:
            self._rows = rows
            self._ready = dict(enumerate(self._products.multiply(rows, self.weights)))
        product = self._ready.pop(index)
        if not self._ready:
            self._rows = None
        return product


class SharingLinear(nn.Module):
    """In place of one of the `Linear` layers of a `SharedRows`."""

    def __init__(self, linear: nn.Linear, shared: SharedRows, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self._shared = shared
        self._index = index

    @property
    def packed(self) -> PackedWeight:
        return self._shared.weights[self._index]

    def forward(self, rows: Tensor) -> Tensor:
        return self._shared.product(self._index, rows)


class NativeGatedMlp(nn.Module):
    """In place of `down(activation(gate(rows)) * up(rows))`."""

    def __init__(self, products: Products, linears: Sequence[nn.Linear], activation: Activation) -> None:
        super().__init__()
        gate, up, down = (products.pack(linear.weight, linear.bias) for linear in linears)
        self.weights = gate, up, down
        self.activation = activation
        self._products = products

    def forward(self, rows: Tensor) -> Tensor:
        return self._products.gated_mlp(rows, self.weights, self.activation)


class NativeRmsNorm(nn.Module):
    """In place of Llama's RMS norm, or with `is_offset` of Gemma's. Rows of another dtype than the weight are left to
    the layer that it replaces."""

    def __init__(
        self, kernels: Kernels, own: nn.Module, weight: nn.Parameter, epsilon: float, *, is_offset: bool
    ) -> None:
        super().__init__()
        self.weight = weight
        self._own = (own,)  # in a tuple: not a part of the model any more
        self._kernels = kernels
        self.epsilon = epsilon
        self.is_offset = is_offset

    def forward(self, rows: Tensor) -> Tensor:
        if rows.dtype != self.weight.dtype:
            return self._own[0](rows)  # type: ignore[no-any-return]
        return self._kernels.rms_norm(rows.contiguous(), self.weight, self.epsilon, is_offset=self.is_offset)
