"""What the service asks of a model, whatever stands behind it: the generator, or the null model of tests. No torch.

A runtime lives on the service's thread. It is handed arrivals, steps while it has work, and returns replies; the
service alone talks to clients.
"""

from dataclasses import dataclass
from typing import Protocol

from core.errors import InvalidRequest, MillraceError
from core.protocol import Delta, Failed, Finished, Generate

Key = tuple[bytes, str]  # a client's identity and the id of its request


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and the time at which the engine received it, in seconds of its monotonic clock."""

    client: bytes
    request: Generate
    arrived_seconds: float

    @property
    def key(self) -> Key:
        return (self.client, self.request.id)


@dataclass(frozen=True, slots=True)
class Reply:
    key: Key
    message: Delta | Finished | Failed


@dataclass(frozen=True, slots=True)
class Gauges:
    """One model's share of `EngineStats`."""

    num_running: int = 0
    num_waiting: int = 0
    num_steps_total: int = 0
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    step_seconds_total: float = 0.0
    kv_used_fraction: float = 0.0


class Runtime(Protocol):
    @property
    def context_tokens(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def num_slots(self) -> int: ...

    def submit(self, arrival: Arrival) -> None:
        """Raises a MillraceError where the request is refused; nothing is left of it then."""

    def cancel(self, key: Key) -> None:
        """Forget a request; there is no reply to it. Unknown keys are none of its concern."""

    def wait_seconds(self) -> float | None:
        """How long until `step` has something to do: 0 is now, None is not before the next arrival."""

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


def failed(key: Key, error: MillraceError) -> Reply:
    return Reply(key, Failed(key[1], error.code, error.message, error.is_retryable))
