import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ConfigurationError, Conflict
from workers.instance import Instance, make_directory

HOLD = (
    "import sys; from pathlib import Path; from workers.instance import Instance\n"
    "with Instance(Path(sys.argv[1]), Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Short enough for Unix sockets, however deep the directory of the tests lies."""
    with tempfile.TemporaryDirectory(prefix="mr-") as directory:
        yield Path(directory)


def instance_in(path: Path) -> Instance:
    return Instance(path / "data", path / "run")


def test_a_data_directory_has_one_instance_and_the_refusal_names_it(tmp_path: Path) -> None:
    # Given
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        instance = Instance(tmp_path, tmp_path)

        # Then
        with pytest.raises(Conflict, match=rf"already runs on {tmp_path} \(process {holder.pid}\)"), instance.lock():
            pass

        # When it is killed
        holder.kill()
        holder.wait()

    # Then
    with instance.lock():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    # Given
    tmp_path.chmod(0o750)

    # When
    make_directory(tmp_path / "a" / "b", 0o711)
    make_directory(tmp_path, 0o711)

    # Then
    assert [path.stat().st_mode & 0o777 for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [
        *(0o750, 0o711, 0o711)
    ]


def test_a_data_directory_that_cannot_be_made_is_a_sentence(short_path: Path) -> None:
    (short_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot make the directory .*--data-dir"):
        instance_in(short_path / "file").prepare()


def test_a_run_directory_that_others_can_write_is_refused(short_path: Path) -> None:
    (short_path / "run").mkdir()
    (short_path / "run").chmod(0o777)
    with pytest.raises(ConfigurationError, match="only you can write"):
        instance_in(short_path).prepare()


def test_only_a_run_directory_of_our_own_is_removed(short_path: Path) -> None:
    # Given
    (short_path / "elsewhere").mkdir()
    (short_path / "elsewhere" / "file").touch()
    (short_path / "run").symlink_to("elsewhere")

    # When
    instance_in(short_path).clear()

    # Then
    assert (short_path / "elsewhere" / "file").exists()

    # When
    (short_path / "run").unlink()
    instance_in(short_path).prepare()
    instance_in(short_path).clear()
    instance_in(short_path).clear()

    # Then
    assert not (short_path / "run").exists()


def test_a_run_directory_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set TMPDIR to a shorter directory"):
        Instance(tmp_path / "data", tmp_path / ("x" * 90)).prepare()
