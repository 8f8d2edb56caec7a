"""Our engine as a peer: the generator in this process, as vLLM's `LLM` class is vLLM without its server. Its text is
made too, though nobody reads it."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.engine_loop import answer_all
from benchmarks.peers.channel import Answer, Setup, Turn, serve
from engine.models.loading import LoadOptions, load_generator


@contextmanager
def load(setup: Setup) -> Iterator[Answer]:
    options = LoadOptions(
        "cpu",
        num_slots=setup.num_slots,
        prefill_tokens=setup.prefill_tokens,
        max_context_tokens=setup.context_tokens,
    )
    generator = load_generator("random", setup.model, options)

    def answer(turn: Turn) -> int:
        return sum(finished.usage.completion_tokens for finished in answer_all(generator, turn))

    yield answer
    generator.close()


if __name__ == "__main__":
    serve(load)
