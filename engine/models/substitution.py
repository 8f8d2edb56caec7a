"""Which layers of a model native ones may replace. Model code stays transformers'; only leaves of it are exchanged.

A layer is replaced where its shape says what it computes and a comparison on random rows confirms it; where either
fails it stays, and the model is served all the same, more slowly. Which linear layers read the same rows is not told
from names but seen in a forward pass of the model. In the end the whole model is compared with what it was before.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelFailure
from engine.models.native_layers import NativeGatedMlp, NativeLinear, NativeRmsNorm, SharedRows, SharingLinear
from engine.models.probe import difference, difference_limit, own_logits
from engine.models.rotation import rotate_natively
from engine.native.kernels import Kernels
from engine.native.products import MOST_AT_ONCE, Activation, Products

_NUM_ROWS = 5  # of the comparison: whole tiles of the kernels and a rest
_CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.01}  # relative; bfloat16 rounds by up to 0.004
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: nn.functional.silu,
    Activation.GELU_TANH: lambda x: nn.functional.gelu(x, approximate="tanh"),
}


@torch.inference_mode()
def use_native_layers(name: str, model: Any, kernels: Kernels) -> int:
    """Returns how many layers were replaced. Raises ModelFailure where the model then computes something else.

    The weights that were packed are given back, but for those that an embedding shares.
    """
    names = {module: path for path, module in model.named_modules()}
    own, readers = _watch(model)
    replaced = 0
    for old, new in _replacements(model, kernels, readers):
        model.set_submodule(names[old], new)
        _release_weights(old)
        replaced += 1
    replaced += rotate_natively(model, kernels)
    worst = max(difference(*pair) for pair in zip(own_logits(model), own, strict=True)) if replaced else 0.0
    if not worst <= difference_limit(model.dtype):  # NaN fails too
        raise ModelFailure(
            f"{name} gives other logits with native layers than by itself (relative difference {worst:.2g}); "
            "start its engine with --no-native"
        )
    return replaced


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


def _replacements(
    model: Any, kernels: Kernels, readers: list[list[nn.Linear]]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Old and new. Packs layer by layer, so that few weights are there twice at a time."""
    products, taken = kernels.products, set[nn.Module]()
    for module in list(model.modules()):
        if (mlp := _gated_mlp(module, products)) is not None:
            taken.update(module.children())
            yield module, mlp
        elif (norm := _rms_norm(module, kernels)) is not None:
            yield module, norm
    for group in readers:
        left = [linear for linear in group if linear not in taken and _can_pack(linear, products)][:MOST_AT_ONCE]
        if len(left) > 1 and len(set(left)) == len(left):
            shared = SharedRows(products, [products.pack(linear.weight, linear.bias) for linear in left])
            for index, linear in enumerate(left):
                taken.add(linear)
                yield linear, SharingLinear(linear, shared, index)
    for module in list(model.modules()):
        if module not in taken and _is_plain_linear(module) and _can_pack(module, products):
            yield module, NativeLinear(products, module)


def _is_plain_linear(module: nn.Module) -> bool:
    """Subclasses (quantized layers, say) compute something else."""
    return type(module) is nn.Linear and is_untouched(module)


def _can_pack(linear: Any, products: Products) -> bool:
    return products.can_pack(linear.weight, linear.bias)


def _gated_mlp(module: Any, products: Products) -> NativeGatedMlp | None:
    linears: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activate = getattr(module, "act_fn", None)
    if activate is None or not is_untouched(module) or sum(1 for _ in module.children()) > len(linears) + 1:
        return None
    if not all(isinstance(linear, nn.Linear) and _is_plain_linear(linear) for linear in linears):
        return None
    gate, up, down = linears
    is_gated = gate.weight.shape == up.weight.shape and gate.out_features == down.in_features
    activation = _activation(activate)
    if activation is None or not is_gated or not all(_can_pack(linear, products) for linear in linears):
        return None
    mlp = NativeGatedMlp(products, linears, activation)
    return mlp if _agree(module, mlp, gate.weight) else None


def _activation(activate: Callable[[Tensor], Tensor]) -> Activation | None:
    x = torch.linspace(-8, 8, 257)
    try:
        own = activate(x)
    except Exception:  # noqa: BLE001  # a stranger's code may raise anything; then it stays
        return None
    same = (kind for kind, known in _ACTIVATIONS.items() if torch.allclose(own, known(x), rtol=1e-5, atol=1e-6))
    return next(same, None)


def _rms_norm(module: Any, kernels: Kernels) -> NativeRmsNorm | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float) or not is_untouched(module):
        return None
    weights = dict(module.named_parameters())
    weight = weights.get("weight")
    if len(weights) != 1 or weight is None or weight.dim() != 1 or not kernels.can_take(weight):
        return None
    candidates = (NativeRmsNorm(kernels, module, weight, epsilon, is_offset=is_offset) for is_offset in (False, True))
    return next((norm for norm in candidates if _agree(module, norm, weight)), None)


def _agree(own: nn.Module, native: nn.Module, weight: Tensor) -> bool:
    """On random rows as wide as the weight's last dimension."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((1, _NUM_ROWS, weight.shape[-1]), generator=generator).to(weight)  # its dtype and device
    try:
        expected, got = own(rows.clone()), native(rows)
    except Exception:  # noqa: BLE001  # a stranger's code may raise anything; then it stays
        return False
    same_form = isinstance(expected, Tensor) and (expected.shape, expected.dtype) == (got.shape, got.dtype)
    return same_form and difference(got, expected) <= _CLOSE[weight.dtype]
