"""The kernels are compiled once for a machine, whoever asks at the same time, and a failure is a sentence."""

import ctypes
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.native import kernels
from engine.native.compiler import NotCompiled, compiled_library
from engine.native.kernels import begin_loading, load_kernels

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "answer.c").write_text(SOURCE)
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a compiler that refuses to tune was called with, named by CC."""
    log, script = tmp_path / "calls", tmp_path / "compiler"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        'case "$*" in *=native*) echo "error: unknown processor" >&2; exit 1;; esac\n'
        f'exec {compiler} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", f"{script} -DWORDS=1")
    return log


@pytest.fixture
def unloaded() -> Iterator[None]:
    """A process that has not looked for kernels yet."""
    kernels._load.cache_clear()
    yield
    kernels._load.cache_clear()


def answer_of(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).answer())


def test_a_library_is_built_once_and_found_again(sources: Path, cache: Path) -> None:
    # Given a first call
    library = compiled_library(cache, sources)
    built = library.stat().st_mtime_ns
    # Then the second finds its result, and nothing else lies there
    assert compiled_library(cache, sources) == library
    assert library.stat().st_mtime_ns == built
    assert answer_of(library) == 42
    assert list(cache.iterdir()) == [library]


def test_other_sources_are_another_library(sources: Path, cache: Path) -> None:
    # Given a library
    before = compiled_library(cache, sources)
    # When a header appears
    (sources / "more.h").write_text("#define MORE 1\n")
    # Then it is not taken for the new one
    assert compiled_library(cache, sources) != before


def test_the_compiler_of_the_environment_is_used_with_its_options(sources: Path, cache: Path, log: Path) -> None:
    compiled_library(cache, sources)
    assert all(call.startswith("-DWORDS=1") for call in log.read_text().splitlines())


def test_a_compiler_that_cannot_tune_still_compiles(sources: Path, cache: Path, log: Path) -> None:
    # When the compiler refuses -march=native
    library = compiled_library(cache, sources)
    # Then the library is made without
    assert answer_of(library) == 42
    assert "native" not in log.read_text().splitlines()[-1]


def test_many_at_once_disturb_nobody(sources: Path, cache: Path) -> None:
    # When six ask at the same time for what is not there yet
    with ThreadPoolExecutor(6) as pool:
        libraries = list(pool.map(lambda _: compiled_library(cache, sources), range(6)))
    # Then all get the same whole library
    assert len(set(libraries)) == 1
    assert answer_of(libraries[0]) == 42
    assert list(cache.iterdir()) == [libraries[0]]


def test_without_a_compiler_a_sentence_says_so(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NotCompiled, match=r"expected a C compiler \(cc, gcc, clang\), found none"):
        compiled_library(cache, sources)


def test_sources_that_do_not_compile_leave_nothing_behind(sources: Path, cache: Path) -> None:
    # Given a mistake
    (sources / "wrong.c").write_text("int wrong(void) { return nothing; }\n")
    # Then its error is told, and the cache is empty
    with pytest.raises(NotCompiled, match="nothing"):
        compiled_library(cache, sources)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotCompiled, match="expected to write"):
        compiled_library(tmp_path / "file" / "kernels", sources)


def test_without_kernels_the_engine_is_told_once_and_goes_on(
    unloaded: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a machine without a compiler
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    # When it looks for kernels, twice
    with caplog.at_level(logging.WARNING):
        loaded = load_kernels() or load_kernels()
    # Then there are none, and one line says what that costs
    assert loaded is None
    assert ["no native kernels" in record.message for record in caplog.records] == [True]


def test_whoever_asks_while_they_are_loading_gets_the_same_kernels(unloaded: None) -> None:
    # When they load in the background and several ask meanwhile
    begin_loading()
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_kernels(), range(4)))
    # Then there is one set of them
    assert all(one is loaded[0] for one in loaded)
