"""What an execution tells the relay while answers that are streamed grow: pieces that say where they belong."""

from collections import Counter

from core.protocol import Delta
from tasks.relay import Piece
from tasks.services import Relay

Place = tuple[int, int]  # request of the job, choice of the request


class Deltas:
    """Of one execution. Until it is told something of a request it says nothing of it."""

    def __init__(self, relay: Relay, job_public_id: str, attempt: int) -> None:
        self._relay = relay
        self._job_public_id = job_public_id
        self._attempt = attempt
        self._num_characters: Counter[Place] = Counter()
        self._num_tokens: Counter[Place] = Counter()

    def take(self, request: int, delta: Delta) -> None:
        place = (request, delta.index)
        offset = self._num_characters[place]
        self._num_characters[place] += len(delta.text)
        self._num_tokens[place] += delta.num_tokens
        piece = Piece(
            attempt=self._attempt,
            request=request,
            choice=delta.index,
            offset=offset,
            text=delta.text,
            num_tokens=self._num_tokens[place],
            prompt_tokens=delta.prompt_tokens,
            logprobs=delta.logprobs,
            tool_format=delta.tool_format,
        )
        self._relay.publish(self._job_public_id, piece)

    def interrupt(self) -> None:
        """The rest of the answers comes, if ever, from another attempt."""
        if self._num_characters:
            self._relay.interrupt(self._job_public_id, self._attempt)
