"""`python -m benchmarks.gpu [--quick] [--json] [--only NAME …] [--device cpu]`: one part after the other, each with a
model of its own. A part that fails says so on the standard error, and the others run; the status is then 1."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu.parity import check_parity, check_quantised, read_sensors
from benchmarks.gpu.peers import measure_peers
from benchmarks.gpu.prefix import measure_prefix
from benchmarks.gpu.scene import FULL, QUICK, TINY, Scene, Size, machine_name
from benchmarks.gpu.steps import measure_steps
from benchmarks.gpu.workloads import measure_llama_8b, measure_nano_vllm
from benchmarks.report import Report

PARTS: dict[str, Callable[[Scene], None]] = {
    "parity": check_parity,
    "nano_vllm": measure_nano_vllm,
    "steps": measure_steps,
    "prefix": measure_prefix,
    "llama_8b": measure_llama_8b,
    "quantised": check_quantised,
    "peers": measure_peers,
    "sensors": read_sensors,
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("expected a CUDA device, found none; see that it works with --device cpu --quick", file=sys.stderr)
        return 2
    report = _open_report(given.device, as_json=given.json)
    scene = Scene(given.device, _size(given.device, is_quick=given.quick), report, given.prefill_tokens, given.kv)
    failed = [name for name in given.only or PARTS if not run_part(name, scene)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_part(name: str, scene: Scene) -> bool:
    scene.report.title(f"{name}: {(PARTS[name].__doc__ or '').strip()}")
    started = time.perf_counter()
    try:
        PARTS[name](scene)
    except Exception:  # noqa: BLE001  # the others are still worth their time
        traceback.print_exc(file=sys.stderr)
        return False
    finally:
        scene.free()
    scene.report.add(f"{name}_took", time.perf_counter() - started, "s")
    return True


def _size(device: str, *, is_quick: bool) -> Size:
    if device == "cpu":
        return TINY
    return QUICK if is_quick else FULL


def _open_report(device: str, *, as_json: bool) -> Report:
    """It takes the standard output for itself; everybody else's goes to the standard error."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report = Report(stream, machine_name(device), as_json=as_json)
    report.title("The engine on one device")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny shapes, to see that it runs"
    )
    parser.add_argument("--quick", action="store_true", help="the same shapes and a quarter of the work")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="this part; may be given several times")
    parser.add_argument("--prefill-tokens", type=int, default=8192, help="prompt tokens per step at most")
    parser.add_argument("--kv", choices=("auto", "rows", "pages"), default="auto", help="auto: pages on a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
