"""The events of a streamed response, a state machine without I/O.

Which events there are and how they are numbered follows from the answer alone, however it arrived: its items are told
one behind the other, each cut into deltas of `DELTA_CHARACTERS`, and a delta of text has the log-probabilities of the
tokens that begin in it. So whoever comes back with the number of the last event that they have gets the rest, no matter
what the relay still knows. Where log-probabilities were asked for, calls of functions are told when the answer is
whole: the tokens that they are made of belong to the text before them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        self._begun: list[_Begun] = []
        self._num_done = 0  # of those
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

    def grow(self, items: Sequence[Item], logprobs: Sequence[Item] = ()) -> list[Event]:
        """items: of the answer so far, of which the last one still grows. logprobs: of the tokens behind those of the
        last call, where asked for. Ends that are no whole delta wait for the next call, and so does text whose tokens
        are not known."""
        self._place(logprobs)
        if self._logprobs:
            items = [item for item in items if item["type"] == "message"]
        return self._new(list(self._advance(items, is_end=False)))

    def continues(self, output: Sequence[Item]) -> bool:
        """Whether what was told is the beginning of it."""
        is_done = [index < self._num_done for index in range(len(self._begun))]
        return len(self._begun) <= len(output) and all(map(_Begun.fits, self._begun, output, is_done))

    def end(self, response: dict[str, Any]) -> list[Event]:
        """response: as it ended."""
        for part in (item["content"][0] for item in response["output"] if item["type"] == "message"):
            self._place(part["logprobs"][len(self._logprobs) :])
        events = list(self._advance(response["output"], is_end=True))
        return self._new([*events, self._event(f"response.{_name(response['status'])}", response=response)])

    def fail(self, code: str, message: str) -> Event:
        """The last event where nothing follows any more."""
        return self._event("error", code=code, message=message, param=None)

    def _advance(self, items: Sequence[Item], *, is_end: bool) -> Iterator[Event]:
        """An item that another one follows is whole."""
        for index in range(self._num_done, len(items)):
            item, is_whole = items[index], is_end or index + 1 < len(items)
            length = len(_said(item)) if is_whole else self._sure_length(item)
            if index == len(self._begun):
                if item["type"] == "message" and not (length or is_whole):
                    return
                self._begun.append(_Begun(item["id"], item.get("name")))
                yield from self._begin_item(index, item)
            yield from self._deltas(index, item, length)
            if is_whole:
                self._num_done += 1
                yield from self._end_item(index, item)

    def _sure_length(self, item: Item) -> int:
        """How much of what still grows can be told: whole deltas whose tokens are known."""
        length = len(_said(item))
        if self._logprobs and item["type"] == "message":
            length = min(length, self._offsets.length)
        return length // DELTA_CHARACTERS * DELTA_CHARACTERS

    def _begin_item(self, index: int, item: Item) -> Iterator[Event]:
        if item["type"] != "message":
            added = {**item, "status": Status.IN_PROGRESS.value, "arguments": ""}
            yield self._event("response.output_item.added", output_index=index, item=added)
            return
        added = text_item(self._name, Status.IN_PROGRESS.value, [])
        yield self._event("response.output_item.added", output_index=index, item=added)
        yield self._event("response.content_part.added", **_address(index, item), part=text_part(""))

    def _deltas(self, index: int, item: Item, length: int) -> Iterator[Event]:
        said, begun = _said(item), self._begun[index]
        for start in range(len(begun.told), length, DELTA_CHARACTERS):
            delta = said[start : start + DELTA_CHARACTERS]
            begun.told += delta
            if item["type"] != "message":
                yield self._event("response.function_call_arguments.delta", **_address(index, item), delta=delta)
                continue
            logprobs = self._logprobs_before(start + DELTA_CHARACTERS)
            yield self._event("response.output_text.delta", **_address(index, item), delta=delta, logprobs=logprobs)

    def _end_item(self, index: int, item: Item) -> Iterator[Event]:
        address = _address(index, item)
        if item["type"] == "message":
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **address, **done)
            yield self._event("response.content_part.done", **address, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **address, **done)
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _place(self, logprobs: Sequence[Item]) -> None:
        self._logprobs += [(self._offsets.before(bytes(one["bytes"])), one) for one in logprobs]

    def _logprobs_before(self, end: int) -> list[Item]:
        """Of tokens that begin before this place and were not told yet."""
        start = self._num_told
        while self._num_told < len(self._logprobs) and self._logprobs[self._num_told][0] < end:
            self._num_told += 1
        return [one for _, one in self._logprobs[start : self._num_told]]

    @property
    def _name(self) -> str:
        return self._beginning.id.removeprefix("resp_")

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _new(self, events: list[Event]) -> list[Event]:
        return [event for event in events if event["sequence_number"] > self._starting_after]


@dataclass(slots=True)
class _Begun:
    """An item that was begun. name: of a called function. told: of what it says, or known to the client."""

    id: str
    name: str | None
    told: str = ""

    def fits(self, item: Item, is_done: bool) -> bool:
        """Whether what was told is the beginning of the item, or all of it."""
        said = _said(item)
        is_same = (self.id, self.name) == (item["id"], item.get("name"))
        return is_same and (said == self.told if is_done else said.startswith(self.told))


def _said(item: Item) -> str:
    """What of an item grows: its text, or the arguments of a call."""
    return str(item["content"][0]["text"] if item["type"] == "message" else item["arguments"])


def _address(index: int, item: Item) -> dict[str, Any]:
    address = {"item_id": item["id"], "output_index": index}
    return {**address, "content_index": 0} if item["type"] == "message" else address


def _name(status: str) -> str:
    """There is no event for a response that was cancelled: to whoever still reads, it failed."""
    return Status.FAILED.value if status == Status.CANCELLED else status
