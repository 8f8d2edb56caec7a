"""The command line of `python -m engine.server`. Nothing else configures an engine: it reads no environment."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

SLOTS = {"cpu": 64, "cuda": 256}
PREFILL_TOKENS = {"cpu": 2048, "cuda": 8192}  # enough that products use the device, and that weights are read seldom
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_FORMS = ("auto", "rows", "pages")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """models: name -> directory, Hub name, or `null:SECONDS`. num_threads: 0 leaves it to torch.

    num_slots, prefill_tokens: of `SLOTS` and `PREFILL_TOKENS`, where nothing else was asked for.

    max_step_seconds: a longer step is taken for a stuck device and ends the process; 0 waits for ever.
    max_temperature_celsius: above it no bulk work begins; 0 is any.

    kv_bytes: K/V memory per model; 0 is automatic.
    native: whether kernels made for the machine may be used: in C on a CPU, Triton's for norms and rotations on a GPU.
    prefix_reuse: whether a prompt that begins like an earlier one of its scope takes over what is kept of that.
    kv: where K/V lie; `auto` is pages on a GPU and rows of a grid on a CPU.
    graphs: whether decode steps on a GPU are CUDA graphs, for models whose are possible.
    credits: requests that one client may have in flight; 0 is two per slot.
    """

    endpoint: str
    device: str
    models: dict[str, str]
    num_slots: int
    prefill_tokens: int
    max_context_tokens: int
    dtype: str
    num_threads: int
    kv_bytes: int
    native: bool
    prefix_reuse: bool
    kv: str
    graphs: bool
    credits: int
    preload: tuple[str, ...]
    max_step_seconds: float
    max_temperature_celsius: float
    log_level: str


def parse_options(arguments: Sequence[str] | None = None) -> EngineOptions:
    """Ends the process with status 2 and a sentence where the arguments are wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    models = dict(given.model)
    num_slots = given.slots or SLOTS[given.device]
    if len(models) != len(given.model):
        parser.error(f"--model: expected different names, got {', '.join(name for name, _ in given.model)}")
    if unknown := [name for name in given.preload if name not in models]:
        parser.error(f"--preload: expected one of {', '.join(models)}, got {', '.join(unknown)}")
    return EngineOptions(
        endpoint=given.endpoint,
        device=given.device,
        models=models,
        num_slots=num_slots,
        prefill_tokens=given.prefill_tokens or PREFILL_TOKENS[given.device],
        max_context_tokens=given.max_context_tokens,
        dtype=given.dtype,
        num_threads=given.threads,
        kv_bytes=given.kv_bytes,
        native=not given.no_native,
        prefix_reuse=not given.no_prefix_reuse,
        kv=given.kv,
        graphs=not given.no_graphs,
        credits=given.credits or 2 * num_slots,
        preload=tuple(given.preload),
        max_step_seconds=given.max_step_seconds,
        max_temperature_celsius=given.max_temperature_celsius,
        log_level=given.log_level,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.server", description="One engine: one device, its models.")
    parser.add_argument("--endpoint", required=True, help="ZMQ endpoint to bind, such as ipc:///run/engine.sock")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is the first visible device")
    parser.add_argument("--model", type=_model, action="append", required=True, metavar="NAME=SOURCE")
    parser.add_argument(
        "--slots", type=_natural, default=0, help="sequences of a model at once; 0 is 64 on a CPU, 256 on a GPU"
    )
    parser.add_argument(
        "--prefill-tokens",
        type=_natural,
        default=0,
        help="prompt tokens processed per step at most; 0 is 2048 on a CPU, 8192 on a GPU",
    )
    parser.add_argument("--max-context-tokens", type=_positive, default=8192, help="prompt and answer together at most")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--threads", type=_natural, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument(
        "--kv-bytes", type=_natural, default=0, help="K/V memory per model; 0 is a part of what is free"
    )
    parser.add_argument("--no-native", action="store_true", help="torch alone, without kernels made for this machine")
    parser.add_argument("--no-prefix-reuse", action="store_true", help="compute every prompt from its first token on")
    parser.add_argument("--kv", choices=KV_FORMS, default="auto", help="where K/V lie; auto is pages on a GPU alone")
    parser.add_argument("--no-graphs", action="store_true", help="decode without CUDA graphs, which cost memory")
    parser.add_argument("--credits", type=_natural, default=0, help="requests in flight per client; 0 is two per slot")
    parser.add_argument(
        "--preload", action="append", default=[], metavar="NAME", help="load it before the first request"
    )
    parser.add_argument(
        "--max-step-seconds", type=_amount, default=120.0, help="a longer step ends the process; 0 waits for ever"
    )
    parser.add_argument(
        "--max-temperature-celsius", type=_amount, default=88.0, help="above it no bulk work begins; 0 is any"
    )
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    return parser


def _model(text: str) -> tuple[str, str]:
    name, separator, source = text.partition("=")
    if not (name and separator and source):
        raise argparse.ArgumentTypeError(f"expected NAME=SOURCE, got {text!r}")
    return name, source


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {number}")
    return number


def _amount(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
