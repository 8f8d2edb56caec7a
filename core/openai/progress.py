"""How much of a streamed answer a client has: written into the id of every event, read from `Last-Event-ID`.

`3:12.5+40+7@9f`: attempt 3 of the run; of the first choice 12 characters; of the second 5, and 40 and 7 characters of
the arguments of two tool calls, log-probabilities of 9 tokens, and its end. `-` is a choice that has not begun.
"""

import re
from dataclasses import dataclass, field

from core.errors import InvalidRequest

_CHOICE = re.compile(r"(\d{1,9})((?:\+\d{1,9})*)(?:@(\d{1,9}))?(f?)")
MAX_ID_CHARACTERS = 8192


@dataclass(slots=True)
class ChoiceProgress:
    """arguments: characters of each call that has begun."""

    has_begun: bool = False
    content: int = 0
    arguments: list[int] = field(default_factory=list)
    logprobs: int = 0
    is_finished: bool = False

    def __str__(self) -> str:
        if not self.has_begun:
            return "-"
        calls = "".join(f"+{length}" for length in self.arguments)
        logprobs = f"@{self.logprobs}" if self.logprobs else ""
        return f"{self.content}{calls}{logprobs}{'f' if self.is_finished else ''}"


@dataclass(slots=True)
class Progress:
    """attempt: of the run whose text the client has; 0 while it has none. has_usage: the last chunk was sent."""

    choices: list[ChoiceProgress]
    attempt: int = 0
    has_usage: bool = False

    @property
    def has_begun(self) -> bool:
        return any(choice.has_begun for choice in self.choices)

    def __str__(self) -> str:
        return f"{self.attempt}:{'.'.join(map(str, self.choices))}{'u' if self.has_usage else ''}"


def new_progress(num_choices: int) -> Progress:
    return Progress([ChoiceProgress() for _ in range(num_choices)])


def parse_progress(event_id: str, num_choices: int) -> Progress:
    """Raises InvalidRequest where it is none of the answer's."""
    attempt, separator, rest = event_id.partition(":")
    choices = rest.removesuffix("u").split(".")
    if len(event_id) > MAX_ID_CHARACTERS or not separator or not attempt.isdecimal() or len(choices) != num_choices:
        raise _unknown(event_id)
    return Progress([_choice(text, event_id) for text in choices], int(attempt[:9]), rest.endswith("u"))


def _choice(text: str, event_id: str) -> ChoiceProgress:
    if text == "-":
        return ChoiceProgress()
    match = _CHOICE.fullmatch(text)
    if match is None:
        raise _unknown(event_id)
    content, calls, logprobs, end = match.groups()
    arguments = [int(length) for length in calls.split("+")[1:]]
    return ChoiceProgress(True, int(content), arguments, int(logprobs or 0), bool(end))


def _unknown(event_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Last-Event-ID: expected the id of an event of this answer, got {event_id[:80]!r}; leave it out to begin anew",
        param="Last-Event-ID",
    )
