"""What an answer says: its content and its tool calls, whole or as far as it has come. Plain values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool. arguments: JSON as the model wrote it, which may be wrong JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """While an answer grows, each message is the beginning of the next: texts get longer, calls more."""

    content: str = ""
    calls: tuple[Call, ...] = ()

    def begins(self, longer: "Message") -> bool:
        """Whether `longer` may come of it."""
        pairs = list(zip(self.calls, longer.calls, strict=False))
        return (
            longer.content.startswith(self.content)
            and len(pairs) == len(self.calls)
            and all(old.name == new.name and new.arguments.startswith(old.arguments) for old, new in pairs)
        )


def call_id(request_id: str, choice: int, number: int) -> str:
    """The same in the stream and in the whole answer."""
    return f"call_{request_id}_{choice}_{number}"
