"""Whether the device computes what a CPU computes: greedy answers in float32, token for token, and quantised models.

Where bitsandbytes or NVIDIA's management library are not installed, their part is left out and says so.
"""

import importlib.util
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.gpu.driver import Capacity, Request, open_generator, run
from benchmarks.gpu.scene import Scene
from benchmarks.gpu.shapes import PARITY, build

_LENGTHS = (1, 3, 17, 40, 90, 5, 33, 64, 2, 12)
_ANSWER_TOKENS = 48
_CAPACITY = Capacity(num_slots=4, context_tokens=256, prefill_tokens=48)  # so that prompts are cut and sequences wait


def check_parity(scene: Scene) -> None:
    """Tiny models of four kinds: as many answers of the device as of the CPU are equal to the last token."""
    for kind, config in PARITY.items():
        requests = _requests(config().vocab_size)
        expected, got = (_answers(scene, kind, device, requests) for device in ("cpu", scene.device))
        num_equal = sum(one == other for one, other in zip(expected, got, strict=True))
        scene.report.add(f"parity_fp32.{kind}", num_equal / len(requests), "of the answers equal the CPU's")


def check_quantised(scene: Scene) -> None:
    """A tiny model loaded in nf4 and int8 by bitsandbytes answers."""
    if scene.device != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        scene.report.title("quantised models: left out, bitsandbytes or a GPU is missing")
        return
    with tempfile.TemporaryDirectory() as directory:
        build(PARITY["llama"](), "cpu", torch.bfloat16).save_pretrained(directory)
        for name, how in (
            ("nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
            ("int8", {"load_in_8bit": True}),
        ):
            model = _quantised(Path(directory), how)
            generator = open_generator(scene, model, _CAPACITY)
            result = run(generator, _requests(model.config.vocab_size))
            scene.report.add(f"quantised_{name}_tokens_per_second", result.tokens_per_second, "answer tokens/s")
            generator.close()


def read_sensors(scene: Scene) -> None:
    """What the driver says of the device; the power is drawn by what ran last."""
    if scene.device != "cuda" or importlib.util.find_spec("pynvml") is None:
        scene.report.title("sensors: left out, pynvml or a GPU is missing")
        return
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    scene.report.add("device_power", pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, "W")
    scene.report.add(
        "device_temperature", pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), "degrees Celsius"
    )
    scene.report.add("device_memory_used", pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30, "GiB")
    pynvml.nvmlShutdown()


def _requests(vocabulary_size: int) -> list[Request]:
    chance = random.Random(0)
    prompts = [[chance.randrange(vocabulary_size) for _ in range(length)] for length in _LENGTHS]
    return [Request(prompt, _ANSWER_TOKENS, temperature=0) for prompt in prompts]


def _answers(scene: Scene, kind: str, device: str, requests: list[Request]) -> list[str]:
    """Weights are drawn on the CPU, whose generator gives others than a GPU's."""
    model = build(PARITY[kind](), "cpu", torch.float32).to(device)
    generator = open_generator(scene, model, replace(_CAPACITY, device=device))
    texts = [one.text for one in run(generator, requests).finished]
    generator.close()
    return texts


def _quantised(directory: Path, how: dict[str, Any]) -> Any:
    quantised = BitsAndBytesConfig(**how, bnb_4bit_compute_dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, quantization_config=quantised, device_map={"": 0}, attn_implementation="eager"
    )
    return model.eval()
