"""Turns the C files beside this module into a library for exactly this processor, once per machine. Knows no torch.

The library lies in the user's cache under a name that changes with the sources, the compiler and the processor. It
appears there by a rename: engines that compile at the same time do the work twice and disturb nobody.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
CACHE = Path(".cache", "millrace", "kernels")  # in the user's home

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC")
_TUNING = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
_SECONDS_AT_MOST = 60


class NotCompiled(Exception):
    """Says why in one sentence. The engine works without, more slowly."""


def compiled_library(cache: Path | None = None, sources: Path = SOURCES) -> Path:
    """The library, from the cache or built into it. Raises NotCompiled."""
    compiler = _compiler()
    cache = _home() / CACHE if cache is None else cache
    library = cache / f"millrace-{_fingerprint(compiler, sources)}.so"
    if library.exists():
        return library
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            built = Path(directory) / library.name
            _compile(compiler, sources, built)
            built.replace(library)
    except OSError as error:
        raise NotCompiled(f"expected to write {cache}, got {error}") from error
    return library


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


def _compile(compiler: list[str], sources: Path, library: Path) -> None:
    """Tuned as far as the compiler can."""
    failures = []
    for tuning in _TUNING:
        try:
            _compile_all([*compiler, *_FLAGS, *tuning], sorted(sources.glob("*.c")), library)
        except NotCompiled as error:
            failures.append(error)
        else:
            return
    raise failures[-1]


def _compile_all(command: list[str], files: list[Path], library: Path) -> None:
    """File by file at the same time: one would keep a single core busy for longer than a model takes to load."""
    objects = [str(library.with_name(f"{path.stem}.o")) for path in files]
    with ThreadPoolExecutor(len(files)) as pool:
        commands = [[*command, "-c", str(path), "-o", place] for path, place in zip(files, objects, strict=True)]
        list(pool.map(_run, commands))
    _run([*command, "-shared", *objects, "-o", str(library), "-lm"])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS_AT_MOST)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(f"expected {command[0]} to run, got {type(error).__name__}: {error}") from error
    if done.returncode:
        first = next(_lines(done.stderr), "no message")
        raise NotCompiled(f"expected {command[0]} to compile the kernels, got status {done.returncode}: {first}")
    return done.stdout


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if "error" in line)
