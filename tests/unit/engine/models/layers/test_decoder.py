"""The layers of a common decoder run as one and compute what they compute one by one; others are left as they are."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaModel,
    Ministral3Config,
    Ministral3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from core.errors import ModelFailure
from core.protocol import Sampling
from engine.generation import grid_attention
from engine.generation.packing import pack
from engine.generation.runner import Runner
from engine.generation.scheduler import Piece
from engine.generation.sequence import Sequence
from engine.kv.grid import KvGrid
from engine.models.layers.decoder import run_layers_as_one
from engine.models.layers.substitution import use_native_layers
from engine.native.decoder import Decoder
from engine.native.kernels import Kernels, load_kernels
from tests.engine_models import SHAPE, VOCABULARY, tiny_model
from tests.unit.engine.models.layers.interleaved import interleaved_model

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
ROWS, COLUMNS = 6, 64


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    loaded = load_kernels()
    assert loaded is not None, "a C compiler is a part of the development environment"
    return loaded


@pytest.fixture(params=[1, 2, 5])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """More than there are cores, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Packed:
    """A model with native layers and packed attention, and a grid for it."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        use_native_layers("tiny", model, kernels)
        grid_attention.register()
        model.set_attn_implementation(grid_attention.ATTENTION_NAME)
        self.model = model
        self.grid = KvGrid((ROWS, COLUMNS), kernels)
        self.runner = Runner(model, self.grid, torch.device("cpu"))

    @torch.inference_mode()
    def forward(self, pieces: list[Piece]) -> Tensor:
        return self.runner.forward(pack(pieces, self.grid, torch.device("cpu")))


def a_model(kind: str) -> Any:
    if kind == "qwen2":  # whose queries, keys and values have a bias
        torch.manual_seed(0)
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
        return model.eval()
    if kind == "gemma":  # whose norms have an offset, and whose activation is another one
        torch.manual_seed(0)
        gemma: Any = GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16))
        return gemma.eval()
    return tiny_model(kind)


def steps(seed: int) -> Iterator[list[Piece]]:
    """Prompts whole and in pieces, beside sequences that decode; sometimes nobody's last piece."""
    chance = random.Random(seed)
    sequences = []
    for slot in range(ROWS):
        ids = [chance.randrange(VOCABULARY) for _ in range(chance.randint(2, 40))]
        sequence = Sequence((b"", str(slot)), ids, Sampling(), 0, slot, 0, 20)
        sequence.slot = slot
        sequences.append(sequence)
    yield [Piece(sequence, 1) for sequence in sequences[:2] if sequence.num_uncached_tokens > 1]
    for sequence in sequences[:2]:
        sequence.num_cached_tokens = 1
    for _ in range(8):
        pieces = [Piece(s, chance.randint(1, s.num_uncached_tokens)) for s in sequences if chance.random() < 0.8]
        if not pieces:
            continue
        yield pieces
        for piece in pieces:
            piece.sequence.num_cached_tokens += piece.num_tokens
            if piece.sequence.num_uncached_tokens == 0:
                piece.sequence.token_ids.append(chance.randrange(VOCABULARY))


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_layers_that_run_as_one_compute_the_same_logits_and_the_same_kv(
    kernels: Kernels, kind: str, dtype: torch.dtype, num_threads: int
) -> None:
    # Given the same model twice, the layers of one of which run as one
    apart, together = (Packed(a_model(kind).to(dtype), kernels) for _ in range(2))
    assert run_layers_as_one(kind, together.model, kernels, together.forward)
    # When both go through the same steps
    for one, other in zip(steps(seed=num_threads), steps(seed=num_threads), strict=True):
        expected, got = apart.forward(one), together.forward(other)
        # Then tokens that are asked for have the same logits, and every later layer read the same
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    assert all(map(torch.equal, together.grid.tensors(), apart.grid.tensors()))


def test_the_layers_do_run_as_one(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Packed(a_model("llama"), kernels)
    assert run_layers_as_one("llama", packed.model, kernels, packed.forward)
    calls: list[int] = []
    run = Decoder.run_

    def counted(self: Decoder, *arguments: Any) -> Tensor:
        calls.append(len(self.layers))
        return run(self, *arguments)

    monkeypatch.setattr(Decoder, "run_", counted)
    packed.forward(next(steps(seed=1)))
    assert calls == [3]


def test_a_model_whose_layers_run_as_one_still_runs_without_packing(kernels: Kernels) -> None:
    # Given its logits before
    packed = Packed(a_model("llama"), kernels)
    ids = torch.arange(7)[None]
    packed.model.set_attn_implementation("eager")
    with torch.inference_mode():
        own = packed.model(input_ids=ids, use_cache=False).logits
        packed.model.set_attn_implementation(grid_attention.ATTENTION_NAME)
        assert run_layers_as_one("llama", packed.model, kernels, packed.forward)
        # When it is called as transformers call it
        packed.model.set_attn_implementation("eager")
        again = packed.model(input_ids=ids, use_cache=False).logits
    # Then nothing has changed
    torch.testing.assert_close(again, own)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gemma2", "more than a norm, attention, a norm and a gated layer"),
        ("gpt2", "keeps no list of layers"),
        ("deepseek_v3", "other parts than four projections"),
    ],
)
def test_a_model_of_another_kind_keeps_its_layers(
    kernels: Kernels, kind: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    packed = Packed(a_model(kind), kernels)
    caplog.set_level(logging.INFO)
    assert not run_layers_as_one(kind, packed.model, kernels, packed.forward)
    assert reason in caplog.text
    assert not any("forward" in layer.__dict__ for layer in getattr(packed.model.base_model, "layers", []))


def test_a_model_that_looks_alike_and_computes_something_else_keeps_its_layers(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a decoder with Llama's parts that adds a share of what its layers compute
    torch.manual_seed(0)
    model: Any = GraniteForCausalLM(GraniteConfig(**SHAPE, residual_multiplier=0.5))
    packed = Packed(model.eval(), kernels)
    before = packed.forward(next(steps(seed=1)))
    caplog.set_level(logging.INFO)
    # When / Then
    assert not run_layers_as_one("granite", model, kernels, packed.forward)
    assert "as one they compute something else" in caplog.text
    torch.testing.assert_close(packed.forward(next(steps(seed=1))), before)


def test_a_model_whose_attention_looks_at_positions_keeps_its_layers(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a decoder with Llama's parts whose queries grow behind a position that no proof comes to
    torch.manual_seed(0)
    scaled: Any = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 32,
    }
    config = Ministral3Config(**SHAPE, head_dim=16, sliding_window=None, rope_parameters=scaled)
    model: Any = Ministral3ForCausalLM(config)
    packed = Packed(model.eval(), kernels)
    caplog.set_level(logging.INFO)
    # When / Then
    assert not run_layers_as_one("ministral3", model, kernels, packed.forward)
    assert "its attention reads position_ids" in caplog.text


def test_a_model_that_rotates_by_its_own_code_keeps_its_layers(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    packed = Packed(interleaved_model("ernie4_5"), kernels)
    caplog.set_level(logging.INFO)
    assert not run_layers_as_one("ernie4_5", packed.model, kernels, packed.forward)
    assert "rotated by its own code" in caplog.text


class OwnAnglesForEach(LlamaModel):  # type: ignore[no-untyped-call]
    """Gives every layer angles of its own, as models do whose layers rotate in different ways."""

    def forward(self, input_ids: Tensor, position_ids: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            angles = self.rotary_emb(hidden, position_ids=position_ids)
            hidden = layer(hidden, attention_mask=None, position_embeddings=angles, packed=kwargs["packed"])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


def test_a_model_that_gives_its_layers_different_angles_keeps_them(
    kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    packed = Packed(a_model("llama"), kernels)
    packed.model.model.__class__ = OwnAnglesForEach
    caplog.set_level(logging.INFO)
    assert not run_layers_as_one("llama", packed.model, kernels, packed.forward)
    assert "do not share the angles" in caplog.text


def test_a_model_with_layers_that_are_not_native_keeps_them(kernels: Kernels, caplog: pytest.LogCaptureFixture) -> None:
    packed = Packed(a_model("llama"), kernels)
    packed.model.base_model.layers[1].mlp = tiny_model("llama").base_model.layers[1].mlp
    caplog.set_level(logging.INFO)
    assert not run_layers_as_one("llama", packed.model, kernels, packed.forward)
    assert "gated layers are not native" in caplog.text


def test_kernels_that_fail_are_not_hidden_behind_the_slower_way(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = Packed(a_model("llama"), kernels)

    def failing(*arguments: Any) -> Tensor:
        raise MemoryError("none left")

    monkeypatch.setattr(Decoder, "run_", failing)
    with pytest.raises(ModelFailure, match=r"layers to run as one, got MemoryError: none left; .*--no-native"):
        run_layers_as_one("llama", packed.model, kernels, packed.forward)
    monkeypatch.undo()
    packed.forward(next(steps(seed=1)))  # with its own layers
