"""Native layers replace those of a model where they compute the same, and only there."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GlmConfig, GlmForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama import modeling_llama

from core.errors import ModelFailure
from engine.models.layers import substitution
from engine.models.layers.native_layers import (
    NativeGatedMlp,
    NativeLinear,
    NativeRmsNorm,
    SharedRows,
    SharingLinear,
)
from engine.models.layers.substitution import use_native_layers
from engine.models.probe import difference, own_logits
from engine.native.kernels import Kernels, load_kernels
from engine.native.products import Activation
from tests.engine_harness import Harness
from tests.engine_models import CONFIGS, tiny_model

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
NATIVE = (NativeGatedMlp, NativeLinear, NativeRmsNorm, SharingLinear)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    loaded = load_kernels()
    assert loaded is not None, "a C compiler is a part of the development environment"
    return loaded


def counted(model: nn.Module) -> dict[str, int]:
    names = [type(module).__name__ for module in model.modules() if isinstance(module, NATIVE)]
    return {name: names.count(name) for name in sorted(set(names))}


def num_rotating(model: nn.Module) -> int:
    return sum("forward" in module.__dict__ for module in model.modules())


@torch.inference_mode()
def logits_of(model: Any) -> list[Tensor]:
    return own_logits(model)


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_computes_the_same_with_native_layers(kernels: Kernels, kind: str, dtype: torch.dtype) -> None:
    # Given a model and its logits
    model = tiny_model(kind).to(dtype)
    own = logits_of(model)
    # When its layers are replaced
    assert use_native_layers(kind, model, kernels).replaced
    # Then its logits are the same
    assert max(difference(*pair) for pair in zip(logits_of(model), own, strict=True)) < CLOSE[dtype]


@pytest.mark.parametrize(
    ("kind", "expected", "rotating"),
    [
        ("llama", {"NativeGatedMlp": 3, "NativeLinear": 4, "NativeRmsNorm": 7, "SharingLinear": 9}, 3),
        ("qwen3", {"NativeGatedMlp": 3, "NativeLinear": 4, "NativeRmsNorm": 13, "SharingLinear": 9}, 3),
        ("gemma3", {"NativeGatedMlp": 3, "NativeLinear": 4, "NativeRmsNorm": 19, "SharingLinear": 9}, 3),
        ("gpt2", {"NativeLinear": 1}, 0),
    ],
)
def test_every_layer_of_a_known_shape_is_replaced(
    kernels: Kernels, kind: str, expected: dict[str, int], rotating: int
) -> None:
    model = tiny_model(kind)
    use_native_layers(kind, model, kernels)
    assert counted(model) == expected
    assert num_rotating(model) == rotating


def test_biases_are_added(kernels: Kernels) -> None:
    # Given a model whose attention has biases, far from zero
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2)
    )  # fmt: skip
    model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    own = logits_of(model)
    # When its layers are replaced, then it computes the same
    use_native_layers("biased", model, kernels)
    assert counted(model)["SharingLinear"] == 6
    assert max(difference(*pair) for pair in zip(logits_of(model), own, strict=True)) < CLOSE[torch.float32]


def test_an_embedding_keeps_the_weights_that_it_shares_with_a_packed_layer(kernels: Kernels) -> None:
    # Given a model whose output layer shares its weights with the embedding
    model = tiny_model("llama", tie_word_embeddings=True)
    # When it is packed
    use_native_layers("tied", model, kernels)
    # Then it can still embed, and no other matrix is left
    assert model.get_input_embeddings().weight.shape == (320, 48)
    assert sum(parameter.dim() > 1 for parameter in model.parameters()) == 1


class _Scaled(nn.Linear):
    """As an adapter or a quantized layer: a linear layer that computes something else."""

    def forward(self, rows: Tensor) -> Tensor:
        return 2 * super().forward(rows)


def test_linear_layers_of_other_classes_stay(kernels: Kernels) -> None:
    # Given a model with such layers in its attention and in its gated layer
    model = tiny_model("llama")
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp
    attention.k_proj.__class__ = mlp.up_proj.__class__ = _Scaled
    # When its layers are replaced
    use_native_layers("scaled", model, kernels)
    # Then these stay, and what stands beside them is replaced
    assert type(attention.k_proj) is _Scaled
    assert type(mlp.up_proj) is _Scaled
    assert type(attention.q_proj) is SharingLinear
    assert type(mlp.gate_proj) is type(mlp.down_proj) is NativeLinear


def _hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda _module, _arguments, output: output * 2)


def _own_forward(module: nn.Module) -> None:
    plain = module.forward
    module.forward = lambda rows: plain(rows) * 2


@pytest.mark.parametrize("change", [_hook, _own_forward])
@pytest.mark.parametrize("path", ["self_attn.q_proj", "mlp", "mlp.gate_proj", "input_layernorm"])
def test_layers_that_somebody_changed_stay(kernels: Kernels, path: str, change: Callable[[nn.Module], None]) -> None:
    # Given a layer with a hook or a method of its own
    model = tiny_model("llama")
    layer = model.model.layers[0].get_submodule(path)
    change(layer)
    own = logits_of(model)
    # When the model's layers are replaced
    use_native_layers("hooked", model, kernels)
    # Then this one stays, and the model computes the same
    assert model.model.layers[0].get_submodule(path) is layer
    assert max(difference(*pair) for pair in zip(logits_of(model), own, strict=True)) < CLOSE[torch.float32]


@pytest.mark.parametrize("activation", ["relu", "gelu", "quick_gelu"])
def test_gated_layers_with_other_activations_keep_their_code(kernels: Kernels, activation: str) -> None:
    # Given gated layers by an activation that the kernel does not know
    model = tiny_model("llama", hidden_act=activation)
    # When its layers are replaced
    use_native_layers("other", model, kernels)
    # Then their products are native, gate and up together, and the rest is the model's own
    assert counted(model) == {"NativeLinear": 7, "NativeRmsNorm": 7, "SharingLinear": 15}


def test_a_gated_layer_whose_code_does_more_keeps_it(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a gated layer by name that scales what it gives
    plain: Any = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, rows: 2 * plain(self, rows))
    model = tiny_model("llama")
    # When its layers are replaced, then it stays
    use_native_layers("scaled", model, kernels)
    assert type(model.model.layers[0].mlp) is modeling_llama.LlamaMLP


def test_a_norm_by_name_alone_stays(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a norm that is called RMS and takes the mean away as well
    def forward(self: Any, rows: Tensor) -> Tensor:
        return nn.functional.layer_norm(rows, rows.shape[-1:], self.weight, None, self.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)
    model = tiny_model("llama")
    # When the model's layers are replaced, then it stays
    use_native_layers("centred", model, kernels)
    assert "NativeRmsNorm" not in counted(model)


def test_a_norm_leaves_rows_of_another_dtype_to_its_own_code(kernels: Kernels) -> None:
    # Given a norm in float32
    own = modeling_llama.LlamaRMSNorm(16, eps=1e-6)
    norm = NativeRmsNorm(kernels, own, own.weight, 1e-6, is_offset=False)
    rows = torch.randn(3, 16).to(torch.bfloat16)
    # When rows in bfloat16 come, then the result is its own
    torch.testing.assert_close(norm(rows), own(rows))


def test_a_rotary_embedding_of_another_kind_stays(kernels: Kernels) -> None:
    # Given a model that rotates neighbours, and only a part of a head
    torch.manual_seed(0)
    model: Any = GlmForCausalLM(
        GlmConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=8, pad_token_id=None, eos_token_id=None)
    )  # fmt: skip
    model.eval()
    # When its layers are replaced, then its rotation is its own
    use_native_layers("neighbours", model, kernels)
    assert num_rotating(model) == 0


def test_transformers_own_code_stays_as_it_was(kernels: Kernels) -> None:
    # Given transformers' functions
    before = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    # When a model's rotation is native
    use_native_layers("llama", tiny_model("llama"), kernels)
    # Then others who use transformers in this process see no difference
    assert (modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward) == before


def test_layers_that_share_rows_are_right_when_they_get_different_ones(kernels: Kernels) -> None:
    # Given two layers that were seen with the same rows
    linears = [nn.Linear(8, 4), nn.Linear(8, 6)]
    shared = SharedRows(kernels.products, [kernels.products.pack(linear.weight, linear.bias) for linear in linears])
    layers = [SharingLinear(linear, shared, index) for index, linear in enumerate(linears)]
    one, other = torch.randn(3, 8), torch.randn(5, 8)
    # When they are called in any order, with any rows, and twice with the same
    for layer, rows in ((0, one), (1, other), (0, other), (1, other), (1, other), (0, one), (1, one), (1, other)):
        # Then each gives its own product
        torch.testing.assert_close(layers[layer](rows), linears[layer](rows))


def test_a_model_that_computes_something_else_afterwards_is_refused_with_the_way_out(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a native layer that is wrong and not found out by itself
    monkeypatch.setattr(substitution, "disagreement", lambda *_: None)
    monkeypatch.setattr(substitution, "_activation", lambda _: Activation.GELU_TANH)
    # When the layers are replaced, then the whole model's logits tell
    with pytest.raises(ModelFailure, match="--no-native"):
        use_native_layers("wrong", tiny_model("llama"), kernels)


@pytest.mark.parametrize("kv", ["rows", "pages"])
def test_the_proof_of_the_packed_form_sees_what_replacing_layers_changed(
    kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a native layer that is wrong, and was found out by nobody so far
    monkeypatch.setattr(substitution, "disagreement", lambda *_: None)
    monkeypatch.setattr(substitution, "_check", lambda *_: None)
    monkeypatch.setattr(substitution, "_activation", lambda _: Activation.GELU_TANH)
    # When the model is loaded, then its packed logits are compared with those before any layer was replaced
    with pytest.raises(ModelFailure, match="other logits in packed form"):
        Harness(tiny_model("llama"), kv=kv)


def test_the_log_says_what_was_replaced_and_what_was_not_and_why(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a model with a norm that somebody changed, and an activation that the kernel does not know
    model = tiny_model("llama", hidden_act="relu")
    _hook(model.model.norm)
    # When its layers are replaced
    with caplog.at_level(logging.INFO):
        use_native_layers("mine", model, kernels)
    # Then one line counts those that were, and one for each reason those that were not
    left = "mine: left to transformers' own, slower code:"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "mine: kernels made for this machine compute 22 linear layers, 6 norms, 3 rotations"),
        ("WARNING", f"{left} 3 gated layers: the kernel does not know its activation"),
        ("WARNING", f"{left} 1 norms: somebody changed it"),
    ]


class _Broken(NativeRmsNorm):
    def forward(self, rows: Tensor) -> Tensor:
        raise RuntimeError("no device function")


def test_a_kernel_that_fails_is_told_and_not_passed_over(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given norms whose kernel does not run
    monkeypatch.setattr(substitution, "NativeRmsNorm", _Broken)
    # Then the model is not served more slowly without a word
    with pytest.raises(ModelFailure, match=r"mine: .*no device function; .*--no-native"):
        use_native_layers("mine", tiny_model("llama"), kernels)
