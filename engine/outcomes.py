"""Outcomes that have been sent and not acknowledged yet, per client. Knows no socket and no clock.

Only clients that have acknowledged once are followed. Such a client never hears two outcomes of one request: whoever
ends a request for the second time, a cancel that crossed its answer for one, finds that it has ended.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from core.protocol import Embedded, EngineMessage, Failed, Finished, Outcome

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sent:
    outcome: Outcome
    sent_seconds: float


class Outcomes:
    """num_kept: per client at most; beyond them the oldest are given up."""

    def __init__(self, num_kept: int, resend_seconds: float) -> None:
        self._num_kept = num_kept
        self._resend_seconds = resend_seconds
        self._kept: dict[bytes, dict[str, _Sent]] = {}  # oldest first

    def is_followed(self, client: bytes) -> bool:
        return client in self._kept

    def acknowledge(self, client: bytes, ids: Iterable[str]) -> None:
        """From now on the client is followed."""
        kept = self._kept.setdefault(client, {})
        for request_id in ids:
            kept.pop(request_id, None)

    def is_kept(self, client: bytes, request_id: str) -> bool:
        return request_id in self._kept.get(client, ())

    def keep(self, client: bytes, messages: list[EngineMessage], now: float) -> list[EngineMessage]:
        """What is to be sent of these messages: all but second outcomes."""
        kept = self._kept.get(client)
        if kept is None:
            return messages
        fresh: list[EngineMessage] = []
        for message in messages:
            if isinstance(message, Finished | Embedded | Failed):
                if message.id in kept:
                    continue
                kept[message.id] = _Sent(message, now)
            fresh.append(message)
        self._bound(client, kept)
        return fresh

    def overdue(self, now: float) -> dict[bytes, list[EngineMessage]]:
        """By client, what it has not acknowledged for too long. The caller sends it now."""
        late: dict[bytes, list[EngineMessage]] = {}
        for client, kept in self._kept.items():
            for sent in kept.values():
                if now - sent.sent_seconds >= self._resend_seconds:
                    sent.sent_seconds = now
                    late.setdefault(client, []).append(sent.outcome)
        return late

    def again(self, client: bytes, now: float) -> list[EngineMessage]:
        """All that this client has not acknowledged. The caller sends it now."""
        kept = self._kept.get(client, {})
        for sent in kept.values():
            sent.sent_seconds = now
        return [sent.outcome for sent in kept.values()]

    def drop(self, client: bytes) -> None:
        """The client is gone; should it return, it has to acknowledge anew to be followed."""
        self._kept.pop(client, None)

    def _bound(self, client: bytes, kept: dict[str, _Sent]) -> None:
        surplus = len(kept) - self._num_kept
        if surplus > 0:
            logger.warning(
                "client %s has not acknowledged %d outcomes; its %d oldest are not sent again",
                client.hex(), len(kept), surplus,
            )  # fmt: skip
        for request_id in list(kept)[: max(0, surplus)]:
            del kept[request_id]
