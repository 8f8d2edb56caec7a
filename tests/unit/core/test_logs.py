import logging
import re

from core.logs import LineFormatter


def formatted(message: str, *arguments: object, **extra: object) -> str:
    logger = logging.getLogger("tasks.upkeep.reconciler")
    record = logger.makeRecord(logger.name, logging.WARNING, "file.py", 1, message, arguments, None, extra=extra)
    record.created, record.msecs = 0.0, 123.0
    return LineFormatter().format(record)


def test_a_line_has_time_in_utc_level_name_and_message() -> None:
    assert formatted("chunk %d", 3) == "1970-01-01 00:00:00.123Z WARNING tasks.upkeep.reconciler: chunk 3"


def test_what_extra_holds_stands_at_the_end() -> None:
    assert formatted("lost", event="chunk.expired", chunk=3).endswith(": lost event=chunk.expired chunk=3")


def test_nothing_of_the_record_itself_is_taken_for_extra() -> None:
    assert not re.search(r"\w+=", formatted("nothing more"))
