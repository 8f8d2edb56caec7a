"""`python -m engine.jobs …`: the torch part of heavy jobs, each a process that frees its device by ending.

Progress goes to stdout, one JSON object a line: `{"event": "progress", "fraction": 0.42, "detail": "…"}` and at the end
`{"event": "done", …}`. The log goes to stderr. Exit status 0: done; 1: failed, the last line of stderr says why;
143: ended by SIGTERM, with nothing left behind.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from core.errors import ConfigurationError, MillraceError
from core.lifeline import follow_parent
from engine.builtin import is_complete, read_training
from engine.builtin.recipe import Recipe

logger = logging.getLogger("engine.jobs")


def main(arguments: list[str] | None = None) -> int:
    follow_parent()
    began = time.monotonic()
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # read when torch loads; else threads spin, 2-6x slower when busy
    signal.signal(signal.SIGTERM, _end)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed, began)
    except MillraceError as error:
        return _fail(error.message)
    except OSError as error:
        return _fail(f"cannot read or write: {error}")
    return 0


def train_builtin(arguments: argparse.Namespace, began: float) -> None:
    if is_complete(arguments.out):
        _emit("done", detail=f"{arguments.out} is complete already", **read_training(arguments.out))
        return
    try:
        from engine.builtin.make import make_builtin_model
    except ImportError as error:
        raise ConfigurationError(
            f"the engine's libraries are missing ({error}); install them with: pip install 'millrace[engine]'"
        ) from error
    recipe = replace(Recipe(), seconds_limit=arguments.seconds_limit, num_steps=arguments.steps)
    figures = make_builtin_model(arguments.out, recipe, _report, began)
    _emit("done", detail=f"{arguments.out} is complete", **figures)


def quantize_model(arguments: argparse.Namespace, began: float) -> None:
    try:
        from engine.quantization.convert import quantize
    except ImportError as error:
        raise ConfigurationError(
            f"the engine's libraries are missing ({error}); install them with: pip install 'millrace[engine]'"
        ) from error
    figures = quantize(arguments.model, arguments.method, arguments.out, _report)
    _emit("done", seconds=round(time.monotonic() - began, 1), **figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.jobs", description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    builtin = commands.add_parser("train-builtin", help="train the built-in model millrace/tiny, once")
    builtin.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model goes")
    builtin.add_argument(
        "--seconds-limit",
        type=_positive,
        default=Recipe().seconds_limit,
        help="fewer steps where they would take longer",
    )
    builtin.add_argument("--steps", type=_count, default=Recipe().num_steps, help="more make it a little better")
    builtin.set_defaults(run=train_builtin)
    quantization = commands.add_parser("quantize", help="make a smaller copy of a model")
    quantization.add_argument("--model", required=True, metavar="SOURCE", help="a directory or a hub name")
    quantization.add_argument("--method", choices=("nf4", "int8"), required=True)
    quantization.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the copy goes")
    quantization.set_defaults(run=quantize_model)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return value


def _report(fraction: float, detail: str) -> None:
    _emit("progress", fraction=round(fraction, 4), detail=detail)


def _emit(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _fail(message: str) -> int:
    logger.error(message)
    return 1


def _end(signal_number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal_number, signal.SIG_IGN)  # let the clean-up finish
    raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    sys.exit(main())
