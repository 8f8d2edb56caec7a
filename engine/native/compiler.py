"""Turns the C files beside this module into a library for exactly this processor, once per machine. Knows no torch.

The library lies in the user's cache under a name that changes with the sources, the compiler, its tuning and the
processor. It appears there by a rename: engines that compile at the same time do the work twice and disturb nobody.
A lesser tuning is used where the compiler refuses the better one, and not where the compiler was merely killed: the
next start tries again.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from engine.native.cache import LibraryCache, NotOurs

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
CACHE = Path(".cache", "millrace", "kernels")  # in the user's home

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC")
_SECONDS_AT_MOST = 60
_REFUSALS = ("unrecognized", "unknown", "unsupported", "not support", "bad value", "no such instruction")


class Tuning(NamedTuple):
    """consequence: of not being able to have a better one; none where there is no better one."""

    name: str
    options: tuple[str, ...]
    consequence: str = ""


_PLAIN = Tuning("plain", (), "the kernels use nothing that only this processor has and are several times slower")
_ON_X86 = (
    Tuning("wide", ("-march=native", "-mprefer-vector-width=512")),
    Tuning("native", ("-march=native",), "the kernels may leave half of the width of AVX-512 unused"),
    _PLAIN,
)
_ELSEWHERE = Tuning("native", ("-march=native",)), Tuning("mcpu", ("-mcpu=native",)), _PLAIN
_TUNINGS = _ON_X86 if platform.machine().lower() in ("x86_64", "amd64") else _ELSEWHERE


class NotCompiled(Exception):
    """Says why in one sentence. The engine works without, more slowly."""


class _OptionRefused(NotCompiled):
    pass


def compiled_library(directory: Path | None = None, sources: Path = SOURCES) -> Path:
    """The library, from the cache in `directory` or built into it. Raises NotCompiled."""
    compiler = _compiler()
    directory = _home() / CACHE if directory is None else directory
    try:
        return _best(LibraryCache(directory), compiler, sources)
    except NotOurs as error:
        raise NotCompiled(str(error)) from error
    except OSError as error:
        raise NotCompiled(f"expected to write {directory}, got {error}") from error


def _best(cache: LibraryCache, compiler: list[str], sources: Path) -> Path:
    """Tuned as far as the compiler can."""
    fingerprint = _fingerprint(compiler, sources)
    refusals: list[_OptionRefused] = []
    for tuning in _TUNINGS:
        stem = f"{fingerprint}-{tuning.name}"
        try:
            library = cache.find(stem) or _built(cache, stem, [*compiler, *_FLAGS, *tuning.options], sources)
        except _OptionRefused as error:
            refusals.append(error)
            continue
        if refusals and tuning.consequence:
            logger.warning("%s: %s", tuning.consequence, refusals[0])
        return library
    raise refusals[-1]


def _built(cache: LibraryCache, stem: str, command: list[str], sources: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=cache.directory) as scratch:
        library = Path(scratch) / "kernels.so"
        _compile_all(command, sorted(sources.glob("*.c")), library)
        return cache.add(stem, library)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise NotCompiled("expected a home directory to keep the compiled kernels in, found none") from error


def _compiler() -> list[str]:
    """`CC` may hold options as well. Nothing else of the environment matters."""
    if own := os.environ.get("CC", "").split():
        candidates: list[list[str]] = [own]
    else:
        candidates = [[name] for name in _COMPILERS]
    for command in candidates:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise NotCompiled(f"expected a C compiler ({', '.join(' '.join(c) for c in candidates)}), found none")


def _fingerprint(compiler: list[str], sources: Path) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted([*sources.glob("*.c"), *sources.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for text in ("\0".join([*compiler, *_FLAGS]), _run([*compiler, "--version"]), _processor()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _processor() -> str:
    """What `-march=native` looks at; a home directory may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(line for line in lines if line.split(":")[0].strip() in told) + platform.machine()


def _compile_all(command: list[str], files: list[Path], library: Path) -> None:
    """File by file at the same time: one would keep a single core busy for longer than a model takes to load."""
    objects = [str(library.with_name(f"{path.stem}.o")) for path in files]
    with ThreadPoolExecutor(len(files)) as pool:
        commands = [[*command, "-c", str(path), "-o", place] for path, place in zip(files, objects, strict=True)]
        list(pool.map(_run, commands))
    _run([*command, "-shared", *objects, "-o", str(library), "-lm"])


def _run(command: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}  # for messages in English
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS_AT_MOST, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(f"expected {command[0]} to run, got {type(error).__name__}: {error}") from error
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        is_refusal = done.returncode > 0 and any(word in line for word in _REFUSALS for line in errors)
        kind = _OptionRefused if is_refusal else NotCompiled
        told = errors[0] if errors else "no message"
        raise kind(f"expected {command[0]} to compile the kernels, got status {done.returncode}: {told}")
    return done.stdout
