"""How every process writes its log: one line per record on standard error, UTC, with what `extra` holds at its end."""

import logging
import sys
import time

_STANDARD = frozenset(vars(logging.makeLogRecord({})).keys()) | {
    "message",
    "asctime",
    "taskName",
    "data",
    "color_message",
}


class LineFormatter(logging.Formatter):
    """`2026-11-20 10:00:00.123Z WARNING tasks.upkeep.reconciler: chunk 3 … event=chunk.expired job=batch_…`"""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        fields = [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        return f"{line} {' '.join(fields)}" if fields else line


def configure(level: str) -> None:
    """Replaces whatever handlers the root logger has."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
