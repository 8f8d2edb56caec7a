"""Figures are those of the default settings."""

import pytest

from benchmarks.sandbox import check_environment
from core.errors import ConfigurationError


def test_settings_in_the_environment_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="got MILLRACE_CHUNK_ROWS, MILLRACE_DATABASE_URL in the environment"):
        check_environment({"MILLRACE_DATABASE_URL": "postgresql://db/x", "MILLRACE_CHUNK_ROWS": "5", "HOME": "/"})


def test_what_processes_tell_each_other_is_no_setting() -> None:
    check_environment({"MILLRACE__PARENT_PID": "7", "HOME": "/"})
