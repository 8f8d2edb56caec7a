"""A directory appears whole or not at all, and one process at a time makes it."""

import fcntl
import threading
from pathlib import Path

import pytest

from core.errors import Conflict, Unavailable
from engine.builtin.publish import appearing_whole, locked


def test_a_directory_appears_when_all_is_written(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with appearing_whole(target) as partial:
        (partial / "weights").write_text("w")
        assert not target.exists()
    assert (target / "weights").read_text() == "w"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failure", [OSError("disk full"), SystemExit(143), KeyboardInterrupt()])
def test_whatever_goes_wrong_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def write() -> None:
        with appearing_whole(tmp_path / "model") as partial:
            (partial / "weights").write_text("w")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_behind_goes_with_the_next_one(tmp_path: Path) -> None:
    # Given the remains of a process that was killed with SIGKILL
    remains = tmp_path / ".model.partial"
    remains.mkdir()
    (remains / "half").write_text("h")
    # When the next one makes the directory
    with appearing_whole(tmp_path / "model") as partial:
        (partial / "weights").write_text("w")
    # Then nothing of it is there
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]
    assert not remains.exists()


def test_files_of_others_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("n")
    with pytest.raises(Conflict, match="does not hold the complete model"), appearing_whole(tmp_path / "model"):
        pass
    assert (tmp_path / "model" / "notes").read_text() == "n"


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with appearing_whole(tmp_path / "model") as partial:
        (partial / "weights").write_text("w")
    assert (tmp_path / "model" / "weights").exists()


def test_a_second_one_waits_until_the_first_is_done(tmp_path: Path) -> None:
    # Given somebody who holds the lock
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with locked(tmp_path / "model", timeout_seconds=30, on_wait=waits.set) as has_waited:
            order.append(f"second, waited: {has_waited}")

    with locked(tmp_path / "model", timeout_seconds=30, on_wait=waits.set) as has_waited:
        # When another one comes
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append(f"first, waited: {has_waited}")
    thread.join(30)
    # Then it has waited
    assert order == ["first, waited: False", "second, waited: True"]


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with (tmp_path / ".model.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(Unavailable, match="another process has been making"),
            locked(tmp_path / "model", timeout_seconds=0, on_wait=lambda: None),
        ):
            pass
