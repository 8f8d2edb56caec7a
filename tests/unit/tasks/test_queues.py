import pytest

from core.job import ServiceClass
from tasks.queues import CONTROL, UPKEEP, heavy_queue, inference_queue, inference_queues


def test_every_class_and_model_has_a_queue_of_its_own() -> None:
    assert inference_queues(ServiceClass.ONLINE, ["a", "org/b"]) == ["online.a", "online.org/b"]
    assert inference_queue("batch", "a") == "batch.a"


def test_an_unknown_class_has_no_queue() -> None:
    with pytest.raises(ValueError, match="bulk"):
        inference_queue("bulk", "a")


def test_no_two_kinds_of_work_share_a_queue() -> None:
    assert (
        len({CONTROL, UPKEEP, heavy_queue("node"), inference_queue("batch", "m"), inference_queue("online", "m")}) == 5
    )
