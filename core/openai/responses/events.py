"""The events of a streamed response, a state machine without I/O.

Which events there are and how they are numbered follows from the answer alone, however it arrived: its text is cut into
deltas of `DELTA_CHARACTERS`, and a delta has the log-probabilities of the tokens that begin in it. So whoever comes
back with the number of the last event that they have gets the rest, no matter what the relay still knows. Calls of
functions are told when the answer is whole, since text may still follow them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from core.openai.answer import TextOffsets
from core.openai.responses.items import Item, text_item, text_part
from core.openai.responses.response import Beginning, Status, unfinished

Event = dict[str, Any]

DELTA_CHARACTERS = 4


class EventWriter:
    """starting_after: number of the last event that the client has; None is none."""

    def __init__(self, beginning: Beginning, starting_after: int | None = None) -> None:
        self._beginning = beginning
        self._starting_after = -1 if starting_after is None else starting_after
        self._number = 0
        self._text = ""  # told, or known to the client
        self._logprobs: list[tuple[int, Item]] = []  # with the place in the text where the token begins
        self._offsets = TextOffsets()
        self._num_told = 0  # of the log-probabilities

    def begin(self) -> list[Event]:
        is_background = self._beginning.echo["background"]
        first = unfinished(self._beginning, Status.QUEUED if is_background else Status.IN_PROGRESS)
        events = [self._event("response.created", response=first)]
        if is_background:
            events.append(self._event("response.queued", response=first))
        running = unfinished(self._beginning, Status.IN_PROGRESS)
        return self._new([*events, self._event("response.in_progress", response=running)])

    def grow(self, text: str, logprobs: Sequence[Item] = ()) -> list[Event]:
        """text: of the answer so far. logprobs: of the tokens behind those of the last call, where asked for. Ends that
        are no whole delta wait for the next call, and so does text whose tokens are not known."""
        self._place(logprobs)
        sure = min(len(text), self._offsets.length) if self._logprobs else len(text)
        return self._new(list(self._deltas(text[: sure // DELTA_CHARACTERS * DELTA_CHARACTERS])))

    def continues(self, text: str) -> bool:
        """Whether what was told is the beginning of it."""
        return text.startswith(self._text)

    def end(self, response: dict[str, Any]) -> list[Event]:
        """response: as it ended."""
        events: list[Event] = []
        for index, item in enumerate(response["output"]):
            events += self._end_text(index, item) if item["type"] == "message" else self._call(index, item)
        return self._new([*events, self._event(f"response.{_name(response['status'])}", response=response)])

    def fail(self, code: str, message: str) -> Event:
        """The last event where nothing follows any more."""
        return self._event("error", code=code, message=message, param=None)

    def _deltas(self, text: str) -> Iterator[Event]:
        if text and not self._text:
            yield from self._begin_text()
        for start in range(len(self._text), len(text), DELTA_CHARACTERS):
            delta = text[start : start + DELTA_CHARACTERS]
            logprobs = self._logprobs_before(start + DELTA_CHARACTERS)
            yield self._event("response.output_text.delta", **self._address(), delta=delta, logprobs=logprobs)
        self._text = max(self._text, text, key=len)

    def _place(self, logprobs: Sequence[Item]) -> None:
        self._logprobs += [(self._offsets.before(bytes(one["bytes"])), one) for one in logprobs]

    def _logprobs_before(self, end: int) -> list[Item]:
        """Of tokens that begin before this place and were not told yet."""
        start = self._num_told
        while self._num_told < len(self._logprobs) and self._logprobs[self._num_told][0] < end:
            self._num_told += 1
        return [one for _, one in self._logprobs[start : self._num_told]]

    def _begin_text(self) -> Iterator[Event]:
        item = text_item(self._name, Status.IN_PROGRESS.value, [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._address(), part=text_part(""))

    def _end_text(self, index: int, item: Item) -> list[Event]:
        part = item["content"][0]
        had_begun = bool(self._text)
        self._place(part["logprobs"][len(self._logprobs) :])
        events = list(self._deltas(part["text"]))
        if not part["text"] and not had_begun:
            events = list(self._begin_text())
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            *events,
            self._event("response.output_text.done", **self._address(), **done),
            self._event("response.content_part.done", **self._address(), part=part),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _call(self, index: int, item: Item) -> list[Event]:
        place = {"item_id": item["id"], "output_index": index}
        arguments = item["arguments"]
        added = {**item, "status": Status.IN_PROGRESS.value, "arguments": ""}
        done = {"arguments": arguments, "name": item["name"]}
        return [
            self._event("response.output_item.added", output_index=index, item=added),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, **done),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    @property
    def _name(self) -> str:
        return self._beginning.id.removeprefix("resp_")

    def _address(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._name}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _new(self, events: list[Event]) -> list[Event]:
        return [event for event in events if event["sequence_number"] > self._starting_after]


def _name(status: str) -> str:
    """There is no event for a response that was cancelled: to whoever still reads, it failed."""
    return Status.FAILED.value if status == Status.CANCELLED else status
