"""The engine beside its peers: answer tokens per second on the same requests, the same weights and the same machine.

64 requests at once (prompts of 16 to 199 tokens, answers of 8 to 128, 2,920 answer tokens in all; 32 of them for the
largest model), greedy, from models with random weights in bfloat16. The peers take turns and never work at the same
time; the median of three rounds counts, and every ratio is ours over theirs. vLLM's CPU build is set up at the first
run in an environment of its own, which takes minutes and 4 GB below the user's cache directory.
`python -m benchmarks.engine [--quick] [--json] [--rounds N] [--shape 115m] [--peers ours,vllm] [--slots N]
[--prefill-tokens N]`; `--quick` is one round of a quarter of the requests on the smallest model, without vLLM.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.catalogue import DEFAULT_PEERS, PEERS, QUICK_PEERS
from benchmarks.peers.figures import add_figures, add_rounds
from benchmarks.peers.rounds import NUM_STARTS, Plan, measure
from benchmarks.random_model import SHAPES
from benchmarks.report import Options, open_report
from benchmarks.workload import MOST_REQUESTS

ROUNDS = 3
QUICK_SHAPE, QUICK_SHARE = "10m", 4
FEWER_REQUESTS = {"600m": MOST_REQUESTS // 2}
SLOTS, PREFILL_TOKENS = 64, 2048


@dataclass(frozen=True, slots=True)
class Chosen:
    is_quick: bool
    as_json: bool
    peers: tuple[str, ...]
    plans: tuple[Plan, ...]


def parse(arguments: Sequence[str] | None = None) -> Chosen:
    """Ends the process with status 2 and a sentence where the arguments are wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    shapes = _names(parser, "--shape", given.shape, SHAPES, (QUICK_SHAPE,) if given.quick else tuple(SHAPES))
    peers = _names(parser, "--peers", given.peers, PEERS, QUICK_PEERS if given.quick else DEFAULT_PEERS)
    plans = tuple(_plan(shape, given) for shape in shapes)
    return Chosen(given.quick, given.json, peers, plans)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--rounds", type=_count, default=0, metavar="N", help="of which the median is taken")
    parser.add_argument("--shape", default="", metavar="NAME,…", help=f"of {', '.join(SHAPES)}; or all")
    parser.add_argument("--peers", default="", metavar="NAME,…", help=f"of {', '.join(PEERS)}; or all")
    parser.add_argument("--slots", type=_count, default=SLOTS, metavar="N", help="sequences that run at once")
    parser.add_argument("--prefill-tokens", type=_count, default=PREFILL_TOKENS, metavar="N", help="a step, of ours")
    return parser


def _names(
    parser: argparse.ArgumentParser, option: str, text: str, known: Iterable[str], default: tuple[str, ...]
) -> tuple[str, ...]:
    if text in ("", "all"):
        return tuple(known) if text else default
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return names


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _plan(shape: str, given: argparse.Namespace) -> Plan:
    num_requests = FEWER_REQUESTS.get(shape, MOST_REQUESTS)
    return Plan(
        shape,
        num_requests=num_requests // QUICK_SHARE if given.quick else num_requests,
        num_rounds=given.rounds or (1 if given.quick else ROUNDS),
        num_starts=1 if given.quick else NUM_STARTS,
        num_slots=given.slots,
        prefill_tokens=given.prefill_tokens,
    )


def main() -> int:
    chosen = parse()
    first = chosen.plans[0]
    title = f"The engine beside its peers, median of {first.num_rounds}, {first.num_slots} slots"
    report = open_report(title, Options(chosen.is_quick, chosen.as_json))
    results = []
    with tempfile.TemporaryDirectory(prefix="millrace-benchmark-") as directory:
        for plan in chosen.plans:
            result = measure(plan, chosen.peers, Path(directory))
            add_rounds(report, result)
            results.append(result)
    add_figures(report, results, as_json=chosen.as_json)
    return 0 if all(set(result.rounds) == set(chosen.peers) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
