"""The command line of `python -m engine.server`. Nothing else configures an engine: it reads no environment."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """models: name -> directory, Hub name, or `null:SECONDS`. num_threads: 0 leaves it to torch.

    kv_bytes: K/V memory per model; 0 is automatic.
    credits: requests that one client may have in flight; 0 is four per slot.
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
    credits: int
    preload: tuple[str, ...]
    log_level: str


def parse_options(arguments: Sequence[str] | None = None) -> EngineOptions:
    """Ends the process with status 2 and a sentence where the arguments are wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    models = dict(given.model)
    if len(models) != len(given.model):
        parser.error(f"--model: expected different names, got {', '.join(name for name, _ in given.model)}")
    if unknown := [name for name in given.preload if name not in models]:
        parser.error(f"--preload: expected one of {', '.join(models)}, got {', '.join(unknown)}")
    return EngineOptions(
        endpoint=given.endpoint,
        device=given.device,
        models=models,
        num_slots=given.slots,
        prefill_tokens=given.prefill_tokens,
        max_context_tokens=given.max_context_tokens,
        dtype=given.dtype,
        num_threads=given.threads,
        kv_bytes=given.kv_bytes,
        credits=given.credits or 4 * given.slots,
        preload=tuple(given.preload),
        log_level=given.log_level,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.server", description="One engine: one device, its models.")
    parser.add_argument("--endpoint", required=True, help="ZMQ endpoint to bind, such as ipc:///run/engine.sock")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is the first visible device")
    parser.add_argument("--model", type=_model, action="append", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--slots", type=_positive, default=32, help="sequences of a model that run at once")
    parser.add_argument(
        "--prefill-tokens", type=_positive, default=512, help="prompt tokens processed per step at most"
    )
    parser.add_argument("--max-context-tokens", type=_positive, default=8192, help="prompt and answer together at most")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--threads", type=_natural, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument(
        "--kv-bytes", type=_natural, default=0, help="K/V memory per model; 0 is a part of what is free"
    )
    parser.add_argument("--credits", type=_natural, default=0, help="requests in flight per client; 0 is four per slot")
    parser.add_argument(
        "--preload", action="append", default=[], metavar="NAME", help="load it before the first request"
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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
