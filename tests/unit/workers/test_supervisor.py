"""The supervisor with real processes: small ones, `python -c` or a shell builtin."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import ConfigurationError, Interrupted, ModelFailure, Unavailable
from core.lifeline import INSTANCE_VARIABLE, PARENT_VARIABLE
from core.settings import Settings
from workers.instance import Instance, end_leftovers, find_processes
from workers.part import Backoff, Part
from workers.supervisor import KILLED_STARTS, Supervisor

FOREVER = "import signal; signal.pause()"
STUBBORN = (
    "import pathlib, signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)];"
    "pathlib.Path({path!r}).touch();\nwhile True: signal.pause()"
)

INNER_SUPERVISOR = """
import sys
from core.settings import Settings
from workers.instance import Instance
from workers.supervisor import Part, Supervisor

supervisor = Supervisor(Instance.of(Settings(data_dir=sys.argv[1])), print)
supervisor.launch([Part(name="orphan", argv=(sys.executable, "-S", "-c", sys.argv[2]))])
supervisor.run()
"""


class Stage:
    """A supervisor on a temporary instance, and the lines it said."""

    def __init__(self, tmp_path: Path) -> None:
        self.instance = Instance.of(Settings(data_dir=str(tmp_path / "data")))
        self.instance.prepare()
        self.lines: list[str] = []
        self.supervisor = Supervisor(self.instance, self.lines.append, backoff=Backoff(base_seconds=0.01))

    def wait_until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            self.supervisor.tick()

    def said(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.supervisor.request_stop()
    stage.supervisor.request_stop()
    stage.supervisor.stop_all()
    shutil.rmtree(stage.instance.run_path)


def python(name: str, code: str, **kwargs: object) -> Part:
    return Part(name=name, argv=(sys.executable, "-S", "-E", "-c", code), **kwargs)  # type: ignore[arg-type]


def touch(path: Path) -> str:
    return f"import pathlib; pathlib.Path({str(path)!r}).touch()"


def test_parts_start_in_order_and_each_says_when_it_is_ready(stage: Stage, tmp_path: Path) -> None:
    # Given
    first, second = tmp_path / "first", tmp_path / "second"
    parts = [
        python("second", f"import os; assert os.path.exists({str(first)!r}); {touch(second)}; {FOREVER}",
               after=("first",), ready=second.exists, note="2.0"),
        python("first", f"{touch(first)}; {FOREVER}", ready=first.exists),
    ]  # fmt: skip

    # When
    stage.supervisor.launch(parts)
    stage.supervisor.wait_ready()

    # Then
    assert [line.split()[:2] for line in stage.lines] == [["ok", "first"], ["ok", "second"]]
    assert "2.0" in stage.lines[1]


def test_a_job_is_ready_when_it_has_ended_well(stage: Stage, tmp_path: Path) -> None:
    # Given
    made = tmp_path / "made"
    job = python("job", touch(made), runs_once=True)
    after = python("after", FOREVER, after=("job",), ready=made.exists)

    # When
    stage.supervisor.launch([job, after])
    stage.supervisor.wait_ready()

    # Then
    assert [line.split()[1] for line in stage.lines] == ["job", "after"]


def test_what_never_becomes_ready_ends_the_start_with_the_end_of_its_log(stage: Stage) -> None:
    stage.supervisor.launch([python("broken", "print('the reason'); raise SystemExit(3)", ready=lambda: False)])
    with pytest.raises(Unavailable, match=r"broken ended with exit status 3(.|\n)*the reason"):
        stage.supervisor.wait_ready()


def test_what_is_not_ready_in_time_ends_the_start(stage: Stage) -> None:
    stage.supervisor.launch([python("slow", FOREVER, ready=lambda: False, ready_seconds=0.05)])
    with pytest.raises(Unavailable, match=r"slow was not ready within 0.05 s"):
        stage.supervisor.wait_ready()
    assert find_processes(stage.instance.identity) == []


def test_a_part_that_says_it_never_will_be_ready_ends_the_start(stage: Stage) -> None:
    def ready() -> bool:
        raise ModelFailure("the weights are broken")

    stage.supervisor.launch([python("engine", FOREVER, ready=ready)])
    with pytest.raises(Unavailable, match="engine cannot become ready: the weights are broken"):
        stage.supervisor.wait_ready()


def test_what_cannot_be_prepared_again_is_tried_until_it_can(stage: Stage, tmp_path: Path) -> None:
    # Given
    obstacle = tmp_path / "obstacle"

    def prepare() -> None:
        if obstacle.exists():
            raise OSError("the disk is full")

    stage.supervisor.launch([python("part", FOREVER, prepare=prepare)])
    stage.supervisor.wait_ready()

    # When
    obstacle.touch()
    for process in find_processes(stage.instance.identity):
        process.kill()
    stage.wait_until(lambda: stage.said("part cannot be started: the disk is full; it is started again in"))
    obstacle.unlink()

    # Then
    stage.wait_until(lambda: stage.said("part", "(again)"))


def test_a_program_that_does_not_exist_is_a_sentence(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot start absent \(/does/not/exist\)"):
        stage.supervisor.launch([Part(name="absent", argv=("/does/not/exist",))])


def test_a_part_that_dies_is_started_again_loudly(stage: Stage) -> None:
    # Given
    stage.supervisor.launch([python("part", f"print('last words', flush=True); {FOREVER}")])
    stage.supervisor.wait_ready()
    (victim,) = find_processes(stage.instance.identity)
    stage.wait_until(lambda: "last words" in stage.instance.log_path("part").read_text())

    # When
    victim.kill()
    stage.wait_until(lambda: stage.said("part", "(again)"))

    # Then
    assert stage.said("part ended with SIGKILL", "it is started again in", "last words")
    assert [process.pid for process in find_processes(stage.instance.identity)] != [victim.pid]


def test_a_part_that_keeps_dying_stays_down_longer_each_time(stage: Stage, tmp_path: Path) -> None:
    # Given
    flag = tmp_path / "flag"
    flag.touch()
    code = f"import os\nif not os.path.exists({str(flag)!r}): raise SystemExit(1)\n{FOREVER}"
    stage.supervisor.launch([python("part", code)])
    stage.supervisor.wait_ready()

    # When
    flag.unlink()
    for process in find_processes(stage.instance.identity):
        process.kill()
    stage.wait_until(lambda: sum("started again in" in line for line in stage.lines) >= 4)
    flag.touch()

    # Then
    stage.wait_until(lambda: len(find_processes(stage.instance.identity)) == 1)


def test_parts_stop_in_the_opposite_order(stage: Stage, tmp_path: Path) -> None:
    # Given
    order = tmp_path / "order"
    code = (
        "import pathlib, signal, sys\n"
        "def end(*_):\n    with open({order!r}, 'a') as file: file.write({name!r} + ' ')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\npathlib.Path({up!r}).touch()\nsignal.pause()"
    )

    def orderly(name: str, *after: str) -> Part:
        up = tmp_path / f"{name}.up"
        return python(name, code.format(order=str(order), name=name, up=str(up)), after=after, ready=up.exists)

    stage.supervisor.launch([orderly("bottom"), orderly("middle", "bottom"), orderly("top", "middle")])
    stage.supervisor.wait_ready()

    # When
    stage.supervisor.stop_all()
    stage.supervisor.stop_all()

    # Then
    assert order.read_text().split() == ["top", "middle", "bottom"]
    assert [line for line in stage.lines if "stopping" in line] == [
        "  stopping top",
        "  stopping middle",
        "  stopping bottom",
    ]


def test_what_was_launched_later_stops_first(stage: Stage) -> None:
    # Given
    stage.supervisor.launch([python("server", FOREVER)])
    stage.supervisor.launch([python("client", FOREVER)])
    stage.supervisor.wait_ready()

    # When
    stage.supervisor.stop_all()

    # Then
    assert [line.split()[-1] for line in stage.lines if "stopping" in line] == ["client", "server"]


def test_what_ignores_its_signal_is_killed_with_its_children(stage: Stage, tmp_path: Path) -> None:
    # Given
    up, below = tmp_path / "up", tmp_path / "below"
    grandchild = STUBBORN.format(path=str(below))
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {grandchild!r}]);"
    part = python("stubborn", code + STUBBORN.format(path=str(up)), ready=lambda: up.exists() and below.exists(),
                  grace_seconds=0.05)  # fmt: skip
    stage.supervisor.launch([part])
    stage.supervisor.wait_ready()
    everybody = find_processes(stage.instance.identity)

    # When
    stage.supervisor.stop_all()

    # Then
    assert len(everybody) == 2
    assert stage.said("killing stubborn")
    assert psutil.wait_procs(everybody, timeout=10)[1] == []


def test_a_second_request_kills_at_once(stage: Stage, tmp_path: Path) -> None:
    # Given
    up = tmp_path / "up"
    part = python("stubborn", STUBBORN.format(path=str(up)), ready=up.exists, grace_seconds=3600)
    stage.supervisor.launch([part])
    stage.supervisor.wait_ready()

    # When
    with stage.supervisor.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        stage.supervisor.run()
        stage.supervisor.stop_all()

    # Then
    assert find_processes(stage.instance.identity) == []


def test_a_stop_during_the_start_interrupts_it(stage: Stage) -> None:
    stage.supervisor.launch([python("slow", FOREVER, ready=lambda: False)])
    with stage.supervisor.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stage.supervisor.wait_ready()


def test_a_child_has_a_session_an_empty_directory_and_the_marks_of_its_instance(stage: Stage) -> None:
    # Given
    code = (
        f"import os; print(os.getsid(0) == os.getpid(), os.listdir(), os.getcwd(), os.environ[{INSTANCE_VARIABLE!r}],"
        f" os.environ[{PARENT_VARIABLE!r}], os.environ.get('GONE'), os.environ['SET'], os.nice(0))"
    )

    # When
    stage.supervisor.launch([python("child", code, runs_once=True, env={"GONE": None, "SET": "1"}, nice=3)])
    stage.supervisor.wait_ready()

    # Then
    instance = stage.instance
    assert instance.log_path("child").read_text().split() == [
        *("True", "[]", str(instance.working_path("child")), instance.identity),
        *(str(os.getpid()), "None", "1", str(os.nice(0) + 3)),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a child of its parent's death on Linux alone")
def test_children_end_when_their_supervisor_is_killed(stage: Stage) -> None:
    # Given
    argv = (sys.executable, "-P", "-c", INNER_SUPERVISOR, str(stage.instance.data_path), FOREVER)
    stage.supervisor.launch([Part(name="inner", argv=argv)])
    stage.wait_until(lambda: "ok  orphan" in stage.instance.log_path("inner").read_text())
    inner, orphan = sorted(find_processes(stage.instance.identity), key=lambda process: process.create_time())

    # When
    inner.kill()

    # Then
    assert psutil.wait_procs([orphan], timeout=30)[1] == []


def test_leftovers_are_ended_even_when_they_ignore_the_signal(stage: Stage, tmp_path: Path) -> None:
    # Given
    up = tmp_path / "up"
    stage.supervisor.launch([python("stubborn", STUBBORN.format(path=str(up)), ready=up.exists)])
    stage.supervisor.wait_ready()

    # When
    ended = end_leftovers(stage.instance.identity, grace_seconds=0.05)

    # Then
    assert len(ended) == 1
    assert find_processes(stage.instance.identity) == []


def test_a_large_log_is_put_aside(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr("workers.children.MAX_LOG_BYTES", 3)
    log = stage.instance.log_path("job")
    log.write_text("much")

    # When
    stage.supervisor.launch([python("job", "print('new')", runs_once=True)])
    stage.supervisor.wait_ready()

    # Then
    assert log.read_text() == "new\n"
    assert log.with_suffix(".log.1").read_text() == "much"


def test_a_part_that_lives_but_gives_no_sign_of_life_is_started_again(stage: Stage) -> None:
    # Given a part that is silent from its third answer on, until it is started again
    answers = iter([True, True])
    part = python("mute", FOREVER, alive=lambda: next(answers, False), alive_seconds=0.2)
    stage.supervisor = Supervisor(
        stage.instance, stage.lines.append, backoff=Backoff(base_seconds=0.01), alive_interval_seconds=0.02
    )
    # When
    stage.supervisor.launch([part])
    # Then
    stage.wait_until(lambda: stage.said("mute", "(again)"))
    assert stage.said("mute hangs: no sign of life for 0.2 s; it is started again")


def test_a_part_that_is_killed_before_it_was_ready_is_started_again_a_few_times(stage: Stage, tmp_path: Path) -> None:
    # Given a part that is killed at its first start
    marker = tmp_path / "started"
    code = (
        f"import os, pathlib, signal; path = pathlib.Path({str(marker)!r});\n"
        "if not path.exists(): path.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "signal.pause()"
    )
    stage.supervisor.launch([python("unlucky", code, ready=marker.exists)])
    # Then
    stage.wait_until(lambda: stage.said("unlucky ended with SIGKILL; it is started again"))
    stage.supervisor.wait_ready()


def test_a_part_that_is_killed_at_every_start_ends_the_start(stage: Stage) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    stage.supervisor.launch([python("doomed", code, ready=lambda: False)])
    with pytest.raises(Unavailable, match="doomed ended with SIGKILL"):
        stage.supervisor.wait_ready()
    assert sum("doomed" in line for line in stage.lines) == KILLED_STARTS
