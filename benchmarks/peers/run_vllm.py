"""vLLM as a peer, as its package leaves it: default settings but for the number of sequences and the context. Its
answers are not made into text."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.channel import Answer, Setup, Turn, serve


@contextmanager
def load(setup: Setup) -> Iterator[Answer]:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # the processes that it spawns need none

    model = LLM(model=setup.model, dtype="bfloat16", max_model_len=setup.context_tokens, max_num_seqs=setup.num_slots)

    def answer(turn: Turn) -> int:
        prompts = [{"prompt_token_ids": prompt} for prompt in turn.prompts]
        parameters = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in turn.answer_tokens
        ]
        outputs = model.generate(prompts, parameters, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    yield answer


if __name__ == "__main__":  # vLLM's own processes import this module again
    serve(load)
