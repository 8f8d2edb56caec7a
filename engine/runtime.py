"""What the service asks of a model, whatever stands behind it: the generator, an embedding model, or the null model of
tests. No torch.

A runtime lives on the service's thread. It is handed arrivals, steps while it has work, and returns replies; the
service alone talks to clients.
"""

from dataclasses import dataclass, field
from typing import Protocol

from core.errors import InvalidRequest, MillraceError
from core.protocol import Delta, Embed, Failed, Generate, Outcome, Spent
from engine.generation.meter import StepTotals

Key = tuple[bytes, str]  # a client's identity and the id of its request


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and the time at which the engine received it, in seconds of its monotonic clock."""

    client: bytes
    request: Generate | Embed
    arrived_seconds: float

    @property
    def key(self) -> Key:
        return (self.client, self.request.id)

    @property
    def deadline_seconds(self) -> float | None:
        """On the clock of `arrived_seconds`."""
        timeout = self.request.timeout_seconds
        return None if timeout is None else self.arrived_seconds + timeout

    def generation(self) -> Generate:
        """Raises InvalidRequest where it is no prompt for a language model."""
        if isinstance(self.request, Generate):
            return self.request
        raise InvalidRequest(f"{self.request.model} answers prompts, it does not embed texts; ask an embedding model")


@dataclass(frozen=True, slots=True)
class Reply:
    key: Key
    message: Delta | Outcome


@dataclass(frozen=True, slots=True)
class Gauges:
    """One model's share of `EngineStats`. steps: by kind and size, where the model has such."""

    num_running: int = 0
    num_waiting: int = 0
    num_steps_total: int = 0
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    step_seconds_total: float = 0.0
    kv_used_fraction: float = 0.0
    num_preemptions_total: int = 0
    prefix_hit_tokens_total: int = 0
    prefix_lookup_tokens_total: int = 0
    steps: StepTotals = field(default_factory=StepTotals)


class Runtime(Protocol):
    @property
    def kind(self) -> str:
        """What it does, as in `ModelStatus`."""
        ...

    @property
    def context_tokens(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def num_slots(self) -> int: ...

    def submit(self, arrival: Arrival) -> None:
        """Raises a MillraceError where the request is refused; nothing is left of it then."""

    def cancel(self, key: Key) -> Spent | None:
        """Forget a request; there is no reply to it. What it has used, where it had begun. Unknown keys are none of its
        concern."""

    def hold_bulk(self, is_held: bool) -> None:
        """While held, no request below ONLINE_PRIORITY begins; those that have begun go on."""

    def wait_seconds(self) -> float | None:
        """How long until `step` has something to do: 0 is now, None is not before the next call of another method."""

    def step(self) -> list[Reply]: ...

    def gauges(self) -> Gauges: ...

    def close(self) -> None:
        """Give the memory back."""


def check_prompt(request: Generate) -> None:
    """Raises InvalidRequest unless the request has exactly one prompt and that is not empty."""
    forms = {"messages": request.messages, "text": request.text, "token_ids": request.token_ids}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        raise InvalidRequest(f"expected one of messages, text or token_ids, got {', '.join(given) or 'none of them'}")
    if not forms[given[0]]:
        raise InvalidRequest(f"{given[0]}: expected a prompt, got an empty one", param=given[0])


def failed(key: Key, error: MillraceError, spent: Spent | None = None) -> Reply:
    return Reply(key, Failed(key[1], error.code, error.message, error.is_retryable, spent))
