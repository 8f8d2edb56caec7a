from core.settings import Settings
from tasks.beat import beat_schedule
from tasks.queues import CONTROL


def test_a_message_that_was_not_taken_in_its_period_expires() -> None:
    entries = beat_schedule(Settings())
    assert entries
    for entry in entries.values():
        assert entry["options"]["expires"] <= entry["schedule"]


def test_the_rescue_has_a_queue_without_long_tasks() -> None:
    assert beat_schedule(Settings())["reconcile"]["options"]["queue"] == CONTROL
