"""The engine of this worker's device, for the length of one heavy job: connecting, waiting for a model, and asking."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from core.errors import ModelFailure, Unavailable
from core.protocol import MODEL_FAILED, MODEL_READY, Failed, Finished, Generate, Hello, ModelStatus, Spent
from workers.engine_client import Answer, EngineClient
from workers.heavy.work import Talk

LOOK_SECONDS = 0.1
WITHDRAWAL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """wait_seconds: how long an engine may be away before the job is given back."""

    endpoint: str
    wait_seconds: float

    @contextmanager
    def connect(self, name: str, talk: Talk) -> Iterator["EngineSession"]:
        """At the end nothing of the job is left on the engine."""
        client = EngineClient(self.endpoint, name=name)
        client.start()
        session = EngineSession(client, self.wait_seconds)
        try:
            yield session
        finally:
            session.withdraw(talk)
            client.close()


@dataclass(slots=True)
class EngineSession:
    client: EngineClient
    wait_seconds: float
    answers: SimpleQueue[Answer] = field(default_factory=SimpleQueue)
    in_flight: set[str] = field(default_factory=set)

    def hello(self, talk: Talk) -> Hello:
        """Raises Unavailable when the engine stays away, Interrupted."""
        waited = 0.0
        while (hello := self.client.wait_ready(LOOK_SECONDS)) is None:
            talk.check()
            waited += LOOK_SECONDS
            if waited > self.wait_seconds:
                raise Unavailable(f"no engine answered within {self.wait_seconds:.0f} s; the job is tried again")
        return hello

    def load(self, model: str, talk: Talk) -> ModelStatus:
        """Waits until the model is in memory; the device is taken to load it meanwhile. Raises ModelFailure when it
        cannot be, Unavailable, Interrupted."""
        self.hello(talk)
        has_asked, began = False, time.monotonic()
        while True:
            status = next((one for one in self.hello(talk).models if one.name == model), None)
            if status is None:
                raise ModelFailure(f"the engine of this device does not serve {model!r}")
            if status.state == MODEL_READY:
                if has_asked:
                    talk.spend(Spent(device_seconds=time.monotonic() - began))
                return status
            if status.state == MODEL_FAILED and has_asked:
                raise ModelFailure(f"{model} cannot be loaded: {status.error}")
            if not has_asked:
                self.client.load(model)
                has_asked = True
            if talk.stop.wait(LOOK_SECONDS):
                talk.check()

    def submit(self, requests: Sequence[Generate]) -> None:
        self.in_flight.update(request.id for request in requests)
        self.client.submit(requests, self.answers.put)

    def withdraw(self, talk: Talk) -> None:
        """What is in flight: it is of no use any more, but has used the device. An engine that is slow to say how much
        is not waited for."""
        self.client.withdraw(list(self.in_flight))
        ends_at = time.monotonic() + WITHDRAWAL_SECONDS
        while self.in_flight and (left := ends_at - time.monotonic()) > 0:
            try:
                self._hear(self.answers.get(timeout=left), talk)
            except Empty:
                return

    def _hear(self, answer: Answer, talk: Talk) -> None:
        """Counts what it has used."""
        if isinstance(answer, Finished | Failed):
            self.in_flight.discard(answer.id)
            talk.spend(_spent(answer))

    def next_answer(self, talk: Talk) -> Answer:
        """Waits for it. Raises ModelFailure for a request that failed (Unavailable where another try may help), and
        Interrupted."""
        while True:
            talk.check()
            try:
                answer = self.answers.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            self._hear(answer, talk)
            if isinstance(answer, Failed):
                kind = Unavailable if answer.is_retryable else ModelFailure
                raise kind(f"a request of the job failed ({answer.code}): {answer.message}")
            return answer


def _spent(answer: Finished | Failed) -> Spent:
    if isinstance(answer, Failed):
        return answer.spent or Spent()
    usage = answer.usage
    return Spent(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, answer.timing.device_seconds)
