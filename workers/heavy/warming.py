"""Warming: a model is brought into the engine's memory before anybody waits for it, and prompts are run on it, so that
their beginnings are known and kernels are compiled."""

import time

import msgspec

from core.heavy import Warming
from core.protocol import BULK_PRIORITY, MODEL_READY, Finished, Generate, Sampling
from workers.heavy.engine_access import EngineAccess, EngineSession
from workers.heavy.work import Result, Talk, Task


class WarmingWork:
    def __init__(self, engine: EngineAccess) -> None:
        self._engine = engine

    def __call__(self, task: Task, talk: Talk) -> Result:
        wanted = msgspec.json.decode(task.parameters, type=Warming)
        began = time.monotonic()
        with self._engine.connect(task.job_public_id, talk) as engine:
            talk.report(0.0, "waiting for the engine")
            known = {model.name: model.state for model in engine.hello(talk).models}
            talk.report(0.1, f"loading {task.model}")
            status = engine.load(task.model, talk)
            loaded_seconds = time.monotonic() - began
            num_tokens = _run_prompts(engine, task, wanted, talk)
        return Result(
            {
                "was_loaded": known.get(task.model) == MODEL_READY,
                "load_seconds": round(loaded_seconds, 3),
                "seconds": round(time.monotonic() - began, 3),
                "weight_bytes": status.weight_bytes,
                "context_tokens": status.context_tokens,
                "num_prompts": len(wanted.prompts),
                "num_tokens": num_tokens,
            }
        )


def _run_prompts(engine: EngineSession, task: Task, wanted: Warming, talk: Talk) -> int:
    """One behind the other. Returns the tokens of prompts and answers."""
    num_tokens = 0
    for index, prompt in enumerate(wanted.prompts):
        talk.report(0.5 + 0.5 * index / len(wanted.prompts), f"prompt {index + 1} of {len(wanted.prompts)}")
        engine.submit(
            [
                Generate(
                    f"{task.job_public_id}-{index}",
                    task.model,
                    Sampling(max_tokens=wanted.max_tokens, temperature=0.0),
                    messages=[{"role": "user", "content": prompt}],
                    priority=BULK_PRIORITY,
                    prefix_scope=task.tenant,
                )
            ]
        )
        answer = engine.next_answer(talk)
        assert isinstance(answer, Finished)
        num_tokens += answer.usage.prompt_tokens + answer.usage.completion_tokens
    return num_tokens
