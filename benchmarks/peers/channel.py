"""How the benchmark talks to the process of a peer: JSON lines, turns in, how long they took out.

The peer's end runs in any environment, so this module knows the standard library and what is built on nothing else.
Replies travel over a pipe of their own: libraries print what they like to the standard output.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from core.lifeline import follow_parent

STATIC, SERIAL, CONTINUOUS = "static", "serial", "continuous"  # modes of transformers


@dataclass(frozen=True, slots=True)
class Setup:
    """What a peer loads.

    model: a directory.  num_slots: sequences that run at once.  prefill_tokens: a step at most; ours alone reads it.
    context_tokens: prompt and answer together, of one request; kv_tokens: of all that run at once.
    mode: of a peer that has several.
    """

    model: str
    num_slots: int
    prefill_tokens: int
    context_tokens: int
    kv_tokens: int
    mode: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """Requests that arrive at once: greedy, each answered with exactly so many tokens."""

    prompts: list[list[int]]
    answer_tokens: list[int]

    @property
    def num_answer_tokens(self) -> int:
        return sum(self.answer_tokens)


@dataclass(frozen=True, slots=True)
class TurnDone:
    seconds: float
    num_answer_tokens: int


Answer = Callable[[Turn], int]  # how many of the tokens that were asked for it has made
Load = Callable[[Setup], AbstractContextManager[Answer]]


def serve(load: Load) -> None:
    """The main function of a peer: loads, says that it is ready, and answers turns until its input ends."""
    follow_parent(signal.SIGKILL)  # any other signal would wait until somebody continues the stopped process
    reply_descriptor, setup = int(sys.argv[1]), Setup(**json.loads(sys.argv[2]))
    with os.fdopen(reply_descriptor, "w") as replies, load(setup) as answer:
        print(json.dumps("ready"), file=replies, flush=True)
        for line in sys.stdin:
            turn = Turn(**json.loads(line))
            started = time.perf_counter()
            num_answer_tokens = answer(turn)
            done = TurnDone(time.perf_counter() - started, num_answer_tokens)
            print(json.dumps(asdict(done)), file=replies, flush=True)
