"""The two optimizers of the built-in model: orthogonalised momentum for the inner matrices, AdamW for the rest.

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` works in
bfloat16, which is slow on a CPU that has no instructions for it; this one stays in float32 and takes all matrices of
one shape at once.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


class OrthogonalMomentum:
    """Moves every matrix by the nearest orthogonal matrix to its (Nesterov) momentum, scaled for its shape."""

    def __init__(self, matrices: Iterable[nn.Parameter], momentum: float = 0.95) -> None:
        self._momentum = momentum
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[matrix.shape].append(matrix)
        self._groups = list(groups.values())
        self._averages = [torch.zeros(len(group), *group[0].shape) for group in self._groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Every matrix must have its gradient."""
        for group, average in zip(self._groups, self._averages, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            average.lerp_(gradient, 1 - self._momentum)
            update = orthogonalized(gradient.lerp(average, self._momentum))
            scale = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            torch._foreach_add_(list(group), list(update.unbind()), alpha=-rate * scale)


def orthogonalized(matrices: Tensor) -> Tensor:
    """(n, rows, columns) float32 -> the same, singular values between about 0.7 and 1.2 (Newton-Schulz, quintic)."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Optimizer:
    """Both together. `matrix_rate` and `rate` are the peaks; a step scales them."""

    def __init__(self, model: nn.Module, matrix_rate: float, rate: float) -> None:
        inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
        others = [p for name, p in model.named_parameters() if name not in inner]
        self._parameters = list(model.parameters())
        self._matrix_rate, self._rate = matrix_rate, rate
        self._matrices = OrthogonalMomentum(inner.values())
        self._others = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, rate_fraction: float) -> None:
        """Uses up the gradients."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for group in self._others.param_groups:
            group["lr"] = self._rate * rate_fraction
        self._others.step()
        self._matrices.step(self._matrix_rate * rate_fraction)
        for parameter in self._parameters:
            parameter.grad = None
