"""`millrace up` as a user starts it, from a directory full of modules named like ours, with the null model, which needs
no torch: what it says, what it refuses, what it survives, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.local.running import running
from core.errors import Unavailable
from core.settings import PREFIX, Settings
from tests.polling import until
from tests.running import free_ports
from tests.servers import temporary_data_directory
from workers.instance import Instance, find_processes

COMMAND = (sys.executable, "-P", "-m", "cli.main")
DEADLINE_SECONDS = 120


class Up:
    """A `millrace up` on a data directory. It can be started again after it has ended."""

    def __init__(self, data_path: Path, cwd: Path) -> None:
        self.instance = Instance.of(Settings(data_dir=str(data_path)))
        self.port, self.flower_port = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self._cwd = cwd
        self._output = data_path.with_name("output.txt")
        self.process = self._spawn()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def start(self) -> None:
        self.process = self._spawn()
        self.wait_until(lambda: "Millrace is ready" in self.output)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        options = up_options(self.instance.data_path, self.port, self.flower_port)
        with self._output.open("w") as output:
            return subprocess.Popen(
                [*COMMAND, *options],
                cwd=self._cwd,
                env=environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until(self, holds: Callable[[], object]) -> None:
        def seen() -> object:
            assert self.process.poll() is None, self.output
            return holds()

        until(seen, told=lambda: self.output)

    def answers(self) -> bool:
        try:
            return bool(get(f"{self.url}/readyz")["status"] == "ok")
        except OSError:
            return False

    def part(self, word: str) -> psutil.Process | None:
        """The part that has the word in its command line."""
        parts = psutil.Process(self.process.pid).children()
        return next((part for part in parts if any(word in argument for argument in part.cmdline())), None)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def foreign_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody keeps a Celery project of their own."""
    path = tmp_path_factory.mktemp("project")
    (path / "db").mkdir()
    for name in ("tasks.py", "core.py", "celeryconfig.py", "flowerconfig.py", "db/__init__.py"):
        (path / name).write_text("raise SystemExit('a module of the user was imported')\n")
    (path / "alembic.ini").write_text("[alembic]\nscript_location = nowhere\n")
    return path


@pytest.fixture(scope="module")
def up(foreign_directory: Path) -> Iterator[Up]:
    with running_up(foreign_directory) as up:
        yield up
        assert up.stop(signal.SIGTERM) == 0
        assert find_processes(up.instance.identity) == []


@contextmanager
def running_up(cwd: Path) -> Iterator[Up]:
    with temporary_data_directory() as data_path:
        data_path.parent.mkdir(exist_ok=True)
        up = Up(data_path, cwd)
        try:
            up.wait_until(lambda: "Millrace is ready" in up.output)
            yield up
        finally:
            up.kill()
            for process in find_processes(up.instance.identity):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def up_options(data_path: Path, port: int, flower_port: int) -> list[str]:
    ports = ["--port", str(port), "--flower-port", str(flower_port)]
    return ["up", "--data-dir", str(data_path), "--model", "null=null:", *ports]


def environment() -> dict[str, str]:
    """Without settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def run(*arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    env = {**environment(), **variables}
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_it_says_a_line_for_each_part_and_then_that_it_is_ready(up: Up) -> None:
    # When
    lines = up.output.splitlines()
    (key_line,) = [line for line in lines if line.startswith("API key of this machine: mr_")]
    lines.remove(key_line)
    names = {line.split()[1] for line in lines[:-1]}

    # Then
    assert lines[-1] == f"Millrace is ready: {up.url}"
    assert {line[:6] for line in lines[:-1]} == {"  ok  "}
    assert names >= {
        "postgresql",
        "valkey",
        "engine-cpu",
        "online-cpu",
        "batch-cpu",
        "control",
        "beat",
        "api",
        "flower",
    }
    assert [model["id"] for model in get(f"{up.url}/v1/models")["data"]] == ["null"]


def test_everything_listens_on_loopback_alone(up: Up) -> None:
    # Given
    processes = [up.process.pid, *(process.pid for process in find_processes(up.instance.identity))]

    # When
    listening = {
        connection.laddr
        for pid in processes
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }

    # Then
    assert listening == {("127.0.0.1", up.port), ("127.0.0.1", up.flower_port)}


def test_a_second_up_on_the_same_data_is_refused_and_names_the_first(up: Up, foreign_directory: Path) -> None:
    second = run(*up_options(up.instance.data_path, *free_ports()), cwd=foreign_directory)
    assert second.returncode == 1
    assert second.stderr.startswith(f"millrace: Millrace already runs on {up.instance.data_path} (process ")
    assert f"(process {up.process.pid}): stop it first" in second.stderr


def test_a_taken_port_is_refused_before_anything_starts(up: Up, foreign_directory: Path, tmp_path: Path) -> None:
    # When
    refused = run(*up_options(tmp_path / "data", up.port, free_ports()[0]), cwd=foreign_directory)

    # Then
    assert refused.returncode == 1
    assert refused.stderr == f"millrace: port {up.port} is taken: choose another one with --port\n"
    assert refused.stdout == ""
    assert list((tmp_path / "data" / "logs").iterdir()) == []


@pytest.mark.parametrize("word", ["api.server", "postgres", "valkey-server", "engine.server"])
def test_a_part_that_is_killed_comes_back(up: Up, word: str) -> None:
    # Given
    victim = up.part(word)
    assert victim is not None
    num_lines = len(up.output.splitlines())

    # When
    victim.kill()
    up.wait_until(lambda: any("(again)" in line for line in up.output.splitlines()[num_lines:]))

    # Then
    said = up.output.splitlines()[num_lines]
    assert "ended with SIGKILL; it is started again in" in said
    successor = up.part(word)
    assert successor is not None
    assert successor.pid != victim.pid
    up.wait_until(up.answers)


def test_a_killed_up_leaves_nothing_in_the_way_of_the_next_which_ctrl_c_stops_cleanly(foreign_directory: Path) -> None:
    with running_up(foreign_directory) as up:
        # Given
        created = get(f"{up.url}/v1/models")["data"][0]["created"]

        # When
        up.kill()
        up.start()

        # Then: the data is still there
        assert get(f"{up.url}/v1/models")["data"][0]["created"] == created

        # When
        status = up.stop(signal.SIGINT)

        # Then
        assert status == 0
        assert find_processes(up.instance.identity) == []
        assert up.output.splitlines()[-2:] == ["  stopping postgresql", "  stopping valkey"]


def test_what_is_wrong_is_a_sentence_and_status_2(tmp_path: Path) -> None:
    # When
    open_address = run("up", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    misspelled = run("up", cwd=tmp_path, MILLRACE_PROT="8700")
    port = run("up", cwd=tmp_path, MILLRACE_PORT="many")

    # Then
    assert [answer.returncode for answer in (open_address, misspelled, port)] == [2, 2, 2]
    assert "expected a loopback address such as 127.0.0.1, got '0.0.0.0'" in open_address.stderr
    assert misspelled.stderr == "millrace: unknown setting MILLRACE_PROT: did you mean MILLRACE_PORT?\n"
    assert port.stderr.startswith("millrace: MILLRACE_PORT: ")
    assert not (tmp_path / "data").exists()


def test_a_server_that_cannot_be_reached_is_a_sentence(tmp_path: Path) -> None:
    # When
    refused = run(
        *up_options(tmp_path / "data", *free_ports()),
        cwd=tmp_path,
        MILLRACE_DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_ports()[0]}/nothing",
        MILLRACE_REDIS_URL=f"redis://127.0.0.1:{free_ports()[0]}/0",
    )

    # Then
    assert refused.returncode == 1
    assert refused.stderr.startswith("millrace: cannot reach MILLRACE_REDIS_URL")
    assert "Traceback" not in refused.stderr


def test_running_is_up_for_the_length_of_a_with() -> None:
    with temporary_data_directory() as data_path:
        # Given
        port, flower_port = free_ports()
        settings = Settings(data_dir=str(data_path), models="null=null:", port=port, flower_port=flower_port)
        instance = Instance.of(settings)

        # When
        with running(settings, with_flower=False) as millrace:
            answer = get(f"{millrace.url}/readyz")
            num_processes = len(find_processes(instance.identity))

        # Then
        assert answer["status"] == "ok"
        assert num_processes > 5
        assert find_processes(instance.identity) == []


def test_running_says_when_up_did_not_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), models="null=null:", host="0.0.0.0")
    with pytest.raises(Unavailable, match="did not start"), running(settings):
        pass
