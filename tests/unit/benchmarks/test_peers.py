"""Peers of the engine: their environments, their processes that take turns, and what transformers and we make of a
turn."""

import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import run_millrace, run_transformers
from benchmarks.peers.channel import CONTINUOUS, SERIAL, STATIC, Setup, Turn
from benchmarks.peers.environment import MARKER, PeerFailed, Requirements, is_prepared, prepare
from benchmarks.peers.process import Launch, PeerProcess, closing
from benchmarks.peers.ready import ready_seconds
from tests.engine_models import save_tiny_model

TURN = Turn([[5, 6, 7], [9, 8, 7, 6, 5, 4], [11]], [4, 2, 7])
SCRIPT = """
from contextlib import contextmanager
from benchmarks.peers.channel import serve

@contextmanager
def load(setup):
    if setup.mode == "broken":
        raise SystemExit("no such model: " + setup.model)
    print("what a library says when it is loaded")
    def answer(turn):
        if turn.prompts == [[13]]:
            raise RuntimeError("this prompt breaks it")
        return sum(turn.answer_tokens) - (setup.mode == "lazy")
    yield answer

serve(load)
"""


def setup(mode: str = "", model: str = "nowhere") -> Setup:
    return Setup(model, num_slots=2, prefill_tokens=64, context_tokens=128, kv_tokens=512, mode=mode)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Of a peer that computes nothing, in a module of its own."""
    (tmp_path / "idle_peer.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    return Launch(Path(sys.executable), "idle_peer", {"PYTHONPATH": paths}, tmp_path / "log")


@pytest.fixture
def peer(launch: Launch) -> Iterator[PeerProcess]:
    process = PeerProcess(launch, setup())
    with closing({"idle": process}):
        yield process


def peers() -> list[psutil.Process]:
    """Children that are Python programs: servers that other tests share may run beside them."""
    return [child for child in psutil.Process().children() if "python" in child.name()]


def status_of_child() -> str:
    (child,) = peers()
    return child.status()


def test_a_peer_is_stopped_whenever_it_is_not_its_turn(peer: PeerProcess) -> None:
    # Given
    assert status_of_child() == psutil.STATUS_STOPPED
    # When it has had turns
    done = [peer.run(TURN), peer.run(TURN)]
    # Then
    assert [measured.num_answer_tokens for measured in done] == [13, 13]
    assert all(measured.seconds > 0 and measured.other_cores >= 0 for measured in done)
    assert peer.ready_seconds > 0
    assert status_of_child() == psutil.STATUS_STOPPED


def test_no_process_is_left_behind_whatever_happens(launch: Launch) -> None:
    # Given
    processes = {"idle": PeerProcess(launch, setup())}
    # When
    with pytest.raises(KeyboardInterrupt), closing(processes):
        raise KeyboardInterrupt
    # Then
    assert peers() == []


def test_a_peer_that_cannot_load_fails_with_its_last_words(launch: Launch) -> None:
    with pytest.raises(PeerFailed, match=r"ended with status 1: .*no such model: nowhere; its log is"):
        PeerProcess(launch, setup("broken"))
    assert peers() == []


def test_a_peer_that_ends_on_its_turn_fails_and_can_be_closed(peer: PeerProcess) -> None:
    with pytest.raises(PeerFailed, match="this prompt breaks it"):
        peer.run(Turn([[13]], [1]))


def test_a_peer_that_made_another_number_of_tokens_is_not_believed(launch: Launch) -> None:
    # Given
    process = PeerProcess(launch, setup("lazy"))
    # When / Then
    with closing({"lazy": process}), pytest.raises(PeerFailed, match="expected 13 answer tokens, got 12"):
        process.run(TURN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def test_our_engine_makes_as_many_tokens_as_are_asked_for(model: str) -> None:
    with run_millrace.load(setup(model=model)) as answer:
        assert [answer(TURN), answer(Turn([[3, 4]], [20]))] == [13, 20]


@pytest.mark.parametrize("mode", [STATIC, SERIAL, CONTINUOUS])
def test_transformers_makes_as_many_tokens_as_are_asked_for(model: str, mode: str) -> None:
    # Given
    before = threading.active_count()
    # When
    with run_transformers.load(setup(mode, model)) as answer:
        made = [answer(TURN), answer(Turn([[3, 4]], [20]))]
    # Then, and nothing of it goes on
    assert made == [13, 20]
    assert threading.active_count() == before


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package of one module, as an index would serve it."""
    path = tmp_path / "stone-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stone.py", "WEIGHT = 900\n")
        archive.writestr("stone-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: stone\nVersion: 1.0\n")
        archive.writestr("stone-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("stone-1.0.dist-info/RECORD", "")
    return path


def imports_stone(python: Path) -> bool:
    return subprocess.run([python, "-c", "import stone"], check=False, stderr=subprocess.DEVNULL).returncode == 0


def test_an_environment_is_made_once_and_again_when_its_list_has_changed(tmp_path: Path, wheel: Path) -> None:
    # Given
    file, home = tmp_path / "stone.txt", tmp_path / "home"
    file.write_text(f"# what it needs\n--no-index\n{wheel}\n")
    wanted = Requirements(file)
    assert not is_prepared(home, wanted)
    # When it is made, and asked for again
    python = prepare(home, wanted)
    made_at = (home / MARKER).stat().st_mtime_ns
    assert imports_stone(python)
    assert prepare(home, wanted) == python
    # Then nothing was done twice, and a comment changes nothing
    file.write_text(f"# all that it needs\n--no-index\n{wheel}\n")
    assert is_prepared(home, wanted)
    assert (home / MARKER).stat().st_mtime_ns == made_at
    # When something is unwanted
    without = Requirements(file, unwanted=("stone",))
    assert not is_prepared(home, without)
    # Then it is not there
    assert not imports_stone(prepare(home, without))


def test_an_environment_that_cannot_be_made_says_why_and_counts_as_none(tmp_path: Path) -> None:
    # Given
    file, home = tmp_path / "stone.txt", tmp_path / "home"
    file.write_text("--no-index\nno-such-stone==1.0\n")
    # When / Then
    with pytest.raises(PeerFailed, match=r"expected `pip install .*no-such-stone"):
        prepare(home, Requirements(file))
    assert not is_prepared(home, Requirements(file))


def test_an_engine_process_becomes_ready_and_is_ended(model: str, tmp_path: Path) -> None:
    # When
    seconds = ready_seconds(setup(model=model), tmp_path / "log")
    # Then
    assert seconds > 0
    assert peers() == []


def test_an_engine_whose_model_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match=r"expected its model to be loaded, but: .*no-such-directory.*; its log is"):
        ready_seconds(setup(model="/no-such-directory"), tmp_path / "log")
    assert peers() == []
