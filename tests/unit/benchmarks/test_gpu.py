"""The benchmark for a GPU runs on a CPU too, on tiny models, and on a machine with little installed."""

import io
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from transformers import PretrainedConfig

from benchmarks.gpu import steps as steps_part
from benchmarks.gpu import workloads as workloads_part
from benchmarks.gpu.__main__ import PARTS, run_part
from benchmarks.gpu.scene import TINY, Scene
from benchmarks.gpu.shapes import build, llama_8b, qwen3_600m, tiny, traffic
from benchmarks.gpu.workloads import NANO_VLLM_ANSWER_TOKENS, nano_vllm_requests
from benchmarks.report import Report
from tests.engine_process import ROOT

NAMES = {
    "parity": ["parity_fp32.llama", "parity_fp32.qwen3", "parity_fp32.gemma3", "parity_fp32.gpt2"],
    "nano_vllm": ["nano_vllm_tokens_per_second", "nano_vllm_share_of_bandwidth", "copy_bandwidth"],
    "steps": ["decode_ms_per_step.4", "decode_share_of_bandwidth.1", "prefill_tokens_per_second"],
    "prefix": ["prefix_ttft_ratio", "prefix_equal_answers", "prefix_reused_tokens"],
    "llama_8b": ["llama_8b_tokens_per_second"],
    "quantised": [],
    "peers": ["ratio_to_transformers_static", "ratio_to_transformers_continuous"],
    "sensors": [],
}
ON_A_BARE_MACHINE = (
    "celery", "fastapi", "httpx", "llguidance", "openai", "platformdirs", "psutil", "psycopg", "pynvml", "redis",
    "sentence_transformers", "sqlalchemy", "typer", "accelerate", "bitsandbytes", "zmq",
)  # fmt: skip


def figures_of(part: str, kv: str) -> dict[str, float]:
    stream = io.StringIO()
    scene = Scene("cpu", TINY, Report(stream, "a machine", as_json=True), prefill_tokens=64, kv=kv)
    assert run_part(part, scene)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(line["machine"] == "a machine" and line["unit"] for line in lines)
    return {line["name"]: line["value"] for line in lines}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_on_a_cpu(part: str) -> None:
    # When
    figures = figures_of(part, "rows")
    # Then its figures are there
    assert set(NAMES[part]) <= figures.keys()
    assert all(figures[name] > 0 for name in NAMES[part])


def _noting(name: str, function: Callable[..., object], steps: list[str]) -> Callable[..., object]:
    def noting(*given: object) -> object:
        steps.append(name)
        return function(*given)

    return noting


@pytest.mark.parametrize("part", ["nano_vllm", "steps", "llama_8b"])
def test_the_bandwidth_is_measured_before_a_model_takes_memory(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given parts that note when they open a generator
    steps: list[str] = []
    for module in (steps_part, workloads_part):
        for name in ("open_generator", "bandwidth"):
            monkeypatch.setattr(module, name, _noting(name, getattr(module, name), steps))
    # When
    figures_of(part, "rows")
    # Then
    assert steps[:2] == ["bandwidth", "open_generator"]


@pytest.mark.parametrize("part", ["nano_vllm", "steps", "prefix"])
def test_it_runs_on_pages(part: str) -> None:
    assert set(NAMES[part]) <= figures_of(part, "pages").keys()


def test_answers_on_pages_are_those_on_rows() -> None:
    parity = {name: value for name, value in figures_of("parity", "pages").items() if name.startswith("parity_fp32")}
    assert set(parity.values()) == {1.0}


def test_a_part_that_fails_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a part that fails
    def fail(_: Scene) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(PARTS, "sensors", fail)
    # When it runs
    scene = Scene("cpu", TINY, Report(io.StringIO(), "a machine", as_json=True), prefill_tokens=64)
    # Then it says so
    assert not run_part("sensors", scene)
    assert "no kernel" in capsys.readouterr().err


def test_the_published_workload_is_reproduced_to_the_token() -> None:
    # When
    requests = nano_vllm_requests()
    # Then it has the published number of answer tokens, and prompts as its own benchmark draws them
    assert sum(request.num_answer_tokens for request in requests) == NANO_VLLM_ANSWER_TOKENS
    assert sum(len(request.prompt) for request in requests) == 142_827
    assert len(requests) == 256
    assert {request.temperature for request in requests} == {0.6}


def test_a_step_reads_every_weight_once_and_the_keys_and_values_of_every_token() -> None:
    # Given a model of two layers with two heads of 16 for keys and values, in float32
    model = build(tiny(), "cpu", torch.float32)
    # When
    needed = traffic(model)
    # Then of its embedding only lines are read, which do not count
    embedding = model.get_input_embeddings().weight.numel()
    assert needed.weight_bytes == 4 * (sum(weight.numel() for weight in model.parameters()) - embedding)
    assert needed.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert needed.step_bytes(10) == needed.weight_bytes + 10 * needed.kv_bytes_per_token


@pytest.mark.parametrize(("shape", "parameters"), [(qwen3_600m, 596_049_920), (llama_8b, 8_030_261_248)])
def test_the_shapes_are_those_of_the_models_they_are_named_after(
    shape: Callable[[], PretrainedConfig], parameters: int
) -> None:
    # Given a model without storage
    model = build(shape(), "meta", torch.float32)
    # Then it has as many parameters as the original
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_nothing_is_imported_that_a_bare_machine_lacks() -> None:
    # Given an interpreter that finds none of these
    blocked = f"sys.modules.update(dict.fromkeys({ON_A_BARE_MACHINE!r}))"
    code = f"import sys; {blocked}; import benchmarks.gpu.__main__"
    # When it imports the benchmark
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    # Then nothing is missing
    assert completed.returncode == 0, completed.stderr
