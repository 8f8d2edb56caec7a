"""The kernels are compiled once for a machine, whoever asks at the same time, and a failure is a sentence."""

import ctypes
import logging
import os
import platform
import shutil
import time
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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other tunings")
def test_a_lesser_library_says_what_it_costs_and_is_not_taken_for_the_better_one(
    sources: Path, cache: Path, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a library of a compiler that refused to tune
    plain = compiled_library(cache, sources)
    assert ["several times slower" in record.message for record in caplog.records] == [True]
    # When the same compiler comes to know the options
    script = log.with_name("compiler")
    script.write_text(f'#!/bin/sh\nexec {shutil.which("cc")} "$@"\n')
    tuned = compiled_library(cache, sources)
    # Then the better one is made
    assert tuned != plain
    assert "-wide-" in tuned.name


def killed_once(script: Path, log: Path) -> None:
    """A compiler whose first compilation is killed, as where memory is short while models load."""
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        f'case "$*" in *-c*) if mkdir {log}.dead 2>/dev/null; then\n'
        'echo "cc: fatal error: Killed signal terminated program cc1" >&2; exit 1; fi;; esac\n'
        f'exec {shutil.which("cc")} "$@"\n'
    )


def test_a_compiler_that_was_killed_leaves_no_lesser_library_behind(sources: Path, cache: Path, log: Path) -> None:
    # Given a compiler that is killed once
    killed_once(log.with_name("compiler"), log)
    # When it is, then there is no library, and no lesser tuning is tried
    with pytest.raises(NotCompiled, match="Killed"):
        compiled_library(cache, sources)
    assert list(cache.iterdir()) == []
    assert sum("-c " in call for call in log.read_text().splitlines()) == 1
    # And the next start makes the best one
    assert compiled_library(cache, sources).name.split("-")[2] in ("wide", "native")


@pytest.mark.parametrize("kept_bytes", [0, 4096])
def test_a_damaged_library_is_not_loaded_but_made_again(sources: Path, cache: Path, kept_bytes: int) -> None:
    # Given a library of which a power failure left the beginning
    library = compiled_library(cache, sources)
    whole = library.read_bytes()
    library.write_bytes(whole[:kept_bytes])
    # When it is asked for again, then it is whole
    again = compiled_library(cache, sources)
    assert again.read_bytes() == whole
    assert answer_of(again) == 42


def test_a_library_is_on_the_disk_before_it_gets_its_name(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a record of what is brought to the disk, and of what had its name by then
    synced: list[tuple[str, int]] = []
    to_disk = os.fsync

    def fsync(descriptor: int) -> None:
        to_disk(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, len(list(cache.glob("*.so")))))

    monkeypatch.setattr(os, "fsync", fsync)
    # When a library is made
    compiled_library(cache, sources)
    # Then first its bytes are, and then its name
    assert synced == [("kernels.so", 0), (cache.name, 1)]


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_code_is_not_loaded_from_where_others_may_write(sources: Path, cache: Path, mode: int) -> None:
    # Given a library in a directory that was opened
    compiled_library(cache, sources)
    cache.chmod(mode)
    # Then it is not used, and the sentence says what to do
    with pytest.raises(NotCompiled, match=rf"writable by nobody else, got owner \d+ and mode {mode:o}; .*700"):
        compiled_library(cache, sources)


def test_code_is_not_loaded_from_somebody_elses_directory(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a directory of another user
    cache.mkdir(parents=True, mode=0o700)
    owner = cache.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    # Then
    with pytest.raises(NotCompiled, match=f"belong to user {owner + 1} .* got owner {owner} "):
        compiled_library(cache, sources)


def test_what_nobody_used_for_months_goes_when_something_new_comes(sources: Path, cache: Path) -> None:
    # Given libraries: one long unused, one old and in use, and a file that is none of ours
    old = compiled_library(cache, sources)
    (sources / "more.h").write_text("#define MORE 1\n")
    used = compiled_library(cache, sources)
    stranger = cache / "notes.so"
    stranger.write_text("")
    long_ago = time.time() - 91 * 24 * 3600
    for path in (old, used, stranger):
        os.utime(path, (long_ago, long_ago))
    assert compiled_library(cache, sources) == used
    # When another is made
    (sources / "more.h").write_text("#define MORE 2\n")
    new = compiled_library(cache, sources)
    # Then the unused one is gone, and the others are not
    assert set(cache.iterdir()) == {used, stranger, new}


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
