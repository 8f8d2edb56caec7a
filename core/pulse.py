"""A sign of life through a file: whoever lives touches it again and again, whoever watches sees that it changes.
Changes are compared, not times, so that a clock that is set says nothing."""

import os
from pathlib import Path

PULSE_FILE_VARIABLE = "MILLRACE__PULSE_FILE"


def pulse_path() -> Path | None:
    """The file that this process should touch; None when nobody watches."""
    path = os.environ.get(PULSE_FILE_VARIABLE)
    return Path(path) if path else None


class PulseWatch:
    """Whether a file was touched since the last look. A file that is not there was not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0

    def __call__(self) -> bool:
        try:
            touched = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        changed, self._seen = touched != self._seen, touched
        return changed
