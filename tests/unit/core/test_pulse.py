import os
from pathlib import Path

from core.lifeline import PulseWatch


def test_a_file_that_is_touched_lives_whatever_the_clock_says(tmp_path: Path) -> None:
    # Given
    path = tmp_path / "pulse"
    watch = PulseWatch(path)
    assert not watch()
    # When it is touched, and again after the clock was set back by an hour
    path.touch()
    assert watch()
    assert not watch()
    os.utime(path, (0, path.stat().st_mtime - 3600))
    # Then
    assert watch()
    assert not watch()
