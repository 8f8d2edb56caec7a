"""Embeddings for many who ask at once: the engine's runtime beside sentence-transformers' `encode` on the same texts.

64 requests of one text each are in flight all the time. Beside that: one `encode` call per request, as a server without
batching makes them, and one `encode` over all texts, which is as good as it gets. In turn, never at once.
`python -m benchmarks.embeddings [--quick] [--json] [--requests N] [--rounds N]`
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.random_embedder import NUM_WORDS, save_random_embedder
from benchmarks.report import Report, open_report, parse_options
from benchmarks.sandbox import gpu_name
from core.protocol import Embed, Embedded
from engine.runtime import Arrival, Runtime

CONCURRENCY = 64
NUM_TEXTS, NUM_TEXTS_QUICK = 1_024, 96
ROUNDS = 3
WORDS = (4, 60)


def texts(count: int) -> list[str]:
    """Lengths are uniform in `WORDS`; always the same."""
    chance = random.Random(0)
    return [" ".join(f"w{chance.randrange(NUM_WORDS)}" for _ in range(chance.randint(*WORDS))) for _ in range(count)]


def run_engine(runtime: Runtime, asked: Sequence[str]) -> None:
    """Whoever has an answer asks the next question."""
    waiting = list(enumerate(asked))[::-1]
    num_open = 0
    while waiting or num_open:
        while waiting and num_open < CONCURRENCY:
            number, text = waiting.pop()
            runtime.submit(Arrival(b"benchmark", Embed(str(number), "random", [text]), time.monotonic()))
            num_open += 1
        for reply in runtime.step():
            assert isinstance(reply.message, Embedded), reply.message
            num_open -= 1


def measure(report: Report, num_texts: int, num_rounds: int) -> None:
    from sentence_transformers import SentenceTransformer

    from engine.embedding.loading import load_embedder
    from engine.models.loading import LoadOptions

    device = "cpu" if gpu_name() is None else "cuda"
    with tempfile.TemporaryDirectory() as root:
        directory = save_random_embedder(Path(root) / "model")
        runtime = load_embedder("random", str(directory), LoadOptions(device))
        library = SentenceTransformer(str(directory), device=device)
    asked = texts(num_texts)
    ways: dict[str, Callable[[Sequence[str]], object]] = {
        "engine": lambda some: run_engine(runtime, some),
        "encode_per_request": lambda some: [library.encode(text, show_progress_bar=False) for text in some],
        "one_large_encode": lambda some: library.encode(list(some), show_progress_bar=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(asked[:CONCURRENCY])  # first use of every kernel
    for _ in range(num_rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(asked)
            rates[name].append(len(asked) / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        report.add(f"embeddings_per_second_{name}", value, "texts/s")
    report.add("embeddings_ratio_to_encode_per_request", medians["engine"] / medians["encode_per_request"], "")
    report.add("embeddings_ratio_to_one_large_encode", medians["engine"] / medians["one_large_encode"], "")


def main() -> None:
    options = parse_options(__doc__)
    num_texts = options.num_requests or (NUM_TEXTS_QUICK if options.is_quick else NUM_TEXTS)
    num_rounds = options.num_rounds or (1 if options.is_quick else ROUNDS)
    title = f"Embeddings of {num_texts} texts of {WORDS[0]} to {WORDS[1]} words, median of {num_rounds}"
    report = open_report(title, options, gpu_name())
    measure(report, num_texts, num_rounds)


if __name__ == "__main__":
    main()
