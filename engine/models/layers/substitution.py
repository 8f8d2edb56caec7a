"""Which layers of a model native ones may replace. Model code stays transformers'; only leaves of it are exchanged.

A layer is replaced where its shape says what it computes and a comparison on random rows confirms it; where either
fails it stays, and the model is served all the same, more slowly; the log says which and why. Which linear layers read
the same rows is not told from names but seen in a forward pass of the model. In the end the whole model is compared
with what it was before.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelFailure
from engine.models.layers.agreement import WAY_OUT, Findings, disagreement
from engine.models.layers.native_layers import NativeGatedMlp, NativeLinear, NativeRmsNorm, SharedRows, SharingLinear
from engine.models.layers.rotation import rotate_natively
from engine.models.probe import difference, difference_limit, far_logits, own_logits
from engine.native.kernels import Kernels
from engine.native.products import MOST_AT_ONCE, Activation, Products

_NUM_ROWS = 5  # of the comparison: whole tiles of the kernels and a rest
_NORMS, _GATED, _LINEAR = "norms", "gated layers", "linear layers"
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: nn.functional.silu,
    Activation.GELU_TANH: lambda x: nn.functional.gelu(x, approximate="tanh"),
}


@torch.inference_mode()
def use_native_layers(name: str, model: Any, kernels: Kernels) -> Findings:
    """Raises ModelFailure where a kernel fails, or where the model then computes something else.

    The weights that were packed are given back, but for those that an embedding shares.
    """
    names = {module: path for path, module in model.named_modules()}
    own, readers = _watch(model)
    own.append(far_logits(model))
    findings = Findings()
    for kind, old, new in _Search(name, model, kernels, findings).replacements(readers):
        model.set_submodule(names[old], new)
        _release_weights(old)
        findings.replaced[kind] += 1
    rotate_natively(name, model, kernels, findings)
    findings.log(name)
    if findings.replaced:
        _check(name, model, own)
    return findings


def _check(name: str, model: Any, own: list[Tensor]) -> None:
    worst = max(difference(*pair) for pair in zip([*own_logits(model), far_logits(model)], own, strict=True))
    if not worst <= difference_limit(model.dtype):  # NaN fails too
        raise ModelFailure(
            f"{name} gives other logits with native layers than by itself (relative difference {worst:.2g}); {WAY_OUT}"
        )


def _release_weights(replaced: nn.Module) -> None:
    for module in replaced.modules():
        if type(module) is nn.Linear:
            module.register_parameter("weight", None)


def is_untouched(module: nn.Module) -> bool:
    """Whether nothing but its class decides what it computes: no hooks, no method of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return not any(hooks) and "forward" not in module.__dict__


def _watch(model: Any) -> tuple[list[Tensor], list[list[nn.Linear]]]:
    """The model's own logits, and the linear layers that read the same tensor, together and in order."""
    seen: list[tuple[Tensor, list[nn.Linear]]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Linear)
        if seen and arguments and seen[-1][0] is arguments[0]:
            seen[-1][1].append(module)
        elif arguments:
            seen.append((arguments[0], [module]))

    watched = [module for module in model.modules() if _is_plain_linear(module)]
    hooks = [module.register_forward_pre_hook(note) for module in watched]
    try:
        own = own_logits(model)
    finally:
        for hook in hooks:
            hook.remove()
    together = {tuple(readers): None for _, readers in seen}  # a layer may be called with others each time
    times = {module: sum(module in readers for readers in together) for module in watched}
    return own, [list(readers) for readers in together if all(times[module] == 1 for module in readers)]


class _Search:
    """For layers that native ones may replace. Notes those that look so and may not."""

    def __init__(self, name: str, model: Any, kernels: Kernels, findings: Findings) -> None:
        self._name = name
        self._model = model
        self._kernels = kernels
        self._findings = findings

    def replacements(self, readers: list[list[nn.Linear]]) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        """Kind, old and new. Packs layer by layer, so that few weights are there twice at a time."""
        products, taken = self._kernels.products, set[nn.Module]()
        for module in list(self._model.modules()):
            if (mlp := self._gated_mlp(module)) is not None:
                taken.update(module.children())
                yield _GATED, module, mlp
            elif (norm := self._rms_norm(module)) is not None:
                yield _NORMS, module, norm
        for group in readers:
            left = [linear for linear in group if linear not in taken and _can_pack(linear, products)][:MOST_AT_ONCE]
            if len(left) > 1 and len(set(left)) == len(left):
                shared = SharedRows(products, [products.pack(linear.weight, linear.bias) for linear in left])
                for index, linear in enumerate(left):
                    taken.add(linear)
                    yield _LINEAR, linear, SharingLinear(linear, shared, index)
        for module in list(self._model.modules()):
            if module not in taken and _is_plain_linear(module) and _can_pack(module, products):
                yield _LINEAR, module, NativeLinear(products, module)

    def _gated_mlp(self, module: Any) -> nn.Module | None:
        linears = _gated_linears(module, self._kernels.products)
        return None if linears is None else self._noted(_GATED, self._native_gated_mlp(module, linears))

    def _native_gated_mlp(self, module: Any, linears: list[Any]) -> nn.Module | str:
        activation = _activation(module.act_fn)
        if activation is None:
            return "the kernel does not know its activation"
        mlp = NativeGatedMlp(self._kernels.products, linears, activation)
        return self._disagreement(module, mlp, linears[0].weight) or mlp

    def _rms_norm(self, module: nn.Module) -> nn.Module | None:
        is_norm = type(module).__name__.endswith("RMSNorm")
        return self._noted(_NORMS, self._native_rms_norm(module)) if is_norm else None

    def _native_rms_norm(self, module: Any) -> nn.Module | str:
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weights = dict(module.named_parameters())
        weight = weights.get("weight")
        if not is_untouched(module):
            return "somebody changed it"
        if not isinstance(epsilon, float) or len(weights) != 1 or weight is None or weight.dim() != 1:
            return "it has other parameters than a weight and an epsilon"
        if not self._kernels.can_take(weight):
            return f"the kernel does not take {weight.dtype} on {weight.device}"
        reasons = []
        for is_offset in (False, True):
            norm = NativeRmsNorm(self._kernels, module, weight, epsilon, is_offset=is_offset)
            reason = self._disagreement(module, norm, weight)
            if reason is None:
                return norm
            reasons.append(reason)
        return reasons[0]

    def _noted(self, kind: str, found: nn.Module | str) -> nn.Module | None:
        if isinstance(found, nn.Module):
            return found
        self._findings.refused[kind, found] += 1
        return None

    def _disagreement(self, own: nn.Module, native: nn.Module, weight: Tensor) -> str | None:
        """On random rows as wide as the weight's last dimension."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn((1, _NUM_ROWS, weight.shape[-1]), generator=generator).to(weight)  # its dtype and device
        return disagreement(self._name, own, native, [rows])


def _is_plain_linear(module: nn.Module) -> bool:
    """Subclasses (quantized layers, say) compute something else."""
    return type(module) is nn.Linear and is_untouched(module)


def _can_pack(linear: Any, products: Products) -> bool:
    return products.can_pack(linear.weight, linear.bias)


def _gated_linears(module: Any, products: Products) -> list[Any] | None:
    """gate, up and down of what looks like a gated layer that can be packed."""
    linears: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    has_more = sum(1 for _ in module.children()) > len(linears) + 1
    if getattr(module, "act_fn", None) is None or has_more or not is_untouched(module):
        return None
    if not all(isinstance(linear, nn.Linear) and _is_plain_linear(linear) for linear in linears):
        return None
    gate, up, down = linears
    is_gated = gate.weight.shape == up.weight.shape and gate.out_features == down.in_features
    return linears if is_gated and all(_can_pack(linear, products) for linear in linears) else None


def _activation(activate: Callable[[Tensor], Tensor]) -> Activation | None:
    x = torch.linspace(-8, 8, 257)
    try:
        own = activate(x)
    except Exception:  # noqa: BLE001  # a stranger's code may raise anything; then it stays
        return None
    same = (kind for kind, known in _ACTIVATIONS.items() if torch.allclose(own, known(x), rtol=1e-5, atol=1e-6))
    return next(same, None)
