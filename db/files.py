"""File rows, and the file store: where the bytes of files live so that every node can read them.

`FileStore` has two homes: PostgreSQL (blocks of a megabyte, the default) and any URL that fsspec understands, such as a
shared directory or an object store. Bytes come before the row that names them: a file that can be found is whole.
"""

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import fsspec
from sqlalchemy import ColumnElement, delete, func, literal, or_, select, text, tuple_
from sqlalchemy.orm import Session

from core.errors import ConfigurationError, NotFound, Unavailable
from db.connection import Database, driver
from db.tables import FileBlockRow, FileRow

BLOCK_BYTES = 1024 * 1024

_BLOCK = "SELECT data FROM file_blocks WHERE file_id = %(file_id)s AND index = %(index)s"

# By id, not by time: the first blocks of all files are few, and there is no index to keep for this alone.
_STORED = text("""
SELECT file_id FROM file_blocks WHERE index = 0 AND file_id > :after AND created_at < now() - :age
ORDER BY file_id LIMIT :limit
""")
PAGE_FILES = 500
_OUR_NAME = re.compile(r"file-[0-9a-f]{24}(\.[0-9a-f]{8}\.part)?")


class FileStore(Protocol):
    def write(self, file_id: str, blocks: Iterable[bytes]) -> int:
        """Stores the bytes under an id, replacing what was there, and returns how many they were."""
        ...

    def read(self, file_id: str) -> Iterator[bytes]:
        """The bytes in blocks. Raises NotFound."""
        ...

    def delete(self, file_id: str) -> None:
        """Does nothing when there is no such file."""
        ...

    def stored(self, *, older_than: timedelta) -> Iterator[str]:
        """The ids whose bytes were stored longer ago than that, pieces of writes that died included."""
        ...


class PostgresFiles:
    """A file is a run of `file_blocks`; written in one transaction, read block by block with flat memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, file_id: str, blocks: Iterable[bytes]) -> int:
        num_bytes = 0
        with self._database.begin() as session:
            session.execute(delete(FileBlockRow).where(FileBlockRow.file_id == file_id))
            for index, block in enumerate(_even(blocks)):
                num_bytes += len(block)
                session.execute(
                    FileBlockRow.__table__.insert(),  # type: ignore[attr-defined]
                    {"file_id": file_id, "index": index, "data": block},
                )
        return num_bytes

    def read(self, file_id: str) -> Iterator[bytes]:
        index = 0
        while (block := self._block(file_id, index)) is not None:
            yield block
            index += 1
        if index == 0:
            raise NotFound(f"the bytes of file {file_id!r} are not in the database")

    def _block(self, file_id: str, index: int) -> bytes | None:
        with self._database.begin() as session, driver(session).cursor(binary=True) as cursor:
            row = cursor.execute(_BLOCK, {"file_id": file_id, "index": index}).fetchone()
        return row[0] if row is not None else None

    def delete(self, file_id: str) -> None:
        with self._database.begin() as session:
            session.execute(delete(FileBlockRow).where(FileBlockRow.file_id == file_id))

    def stored(self, *, older_than: timedelta) -> Iterator[str]:
        after = ""
        while True:
            with self._database.begin() as session:
                page = session.scalars(_STORED, {"after": after, "age": older_than, "limit": PAGE_FILES}).all()
            yield from page
            if len(page) < PAGE_FILES:
                return
            after = page[-1]


class UrlFiles:
    """Files below a URL, through fsspec. Written under a temporary name and moved, so no reader sees half a file."""

    def __init__(self, url: str) -> None:
        try:
            self._filesystem, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"MILLRACE_FILE_STORE: expected `postgresql` or a URL that fsspec understands, got {url!r}: {error}"
            ) from error
        self._root = root.rstrip("/")

    def _path(self, file_id: str) -> str:
        return f"{self._root}/{file_id}"

    def write(self, file_id: str, blocks: Iterable[bytes]) -> int:
        num_bytes = 0
        temporary = f"{self._path(file_id)}.{secrets.token_hex(4)}.part"
        try:
            self._filesystem.makedirs(self._root, exist_ok=True)
            with self._filesystem.open(temporary, "wb") as target:
                for block in blocks:
                    num_bytes += len(block)
                    target.write(block)
            self._filesystem.mv(temporary, self._path(file_id))
        except OSError as error:
            self._discard(temporary)
            raise Unavailable(f"the file store {self._root} did not take {file_id}: {error}") from error
        return num_bytes

    def _discard(self, path: str) -> None:
        if self._filesystem.exists(path):
            self._filesystem.rm(path)

    def read(self, file_id: str) -> Iterator[bytes]:
        try:
            with self._filesystem.open(self._path(file_id), "rb") as source:
                while block := source.read(BLOCK_BYTES):
                    yield block
        except FileNotFoundError as error:
            raise NotFound(f"the bytes of file {file_id!r} are not in the file store {self._root}") from error
        except OSError as error:
            raise Unavailable(f"the file store {self._root} could not be read: {error}") from error

    def delete(self, file_id: str) -> None:
        self._discard(self._path(file_id))

    def stored(self, *, older_than: timedelta) -> Iterator[str]:
        """By the clock of whoever stores them. Only names that are ours: the place may hold other things too."""
        newest = datetime.now(UTC) - older_than
        if not self._filesystem.exists(self._root):
            return
        for path in self._filesystem.ls(self._root, detail=False):
            name = path.rpartition("/")[2]
            if _OUR_NAME.fullmatch(name) and self._filesystem.modified(path) < newest:
                yield name


def open_file_store(setting: str, database: Database) -> FileStore:
    """`setting`: `postgresql` or a URL. Raises ConfigurationError on another value."""
    return PostgresFiles(database) if setting == "postgresql" else UrlFiles(setting)


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def put(session: Session, file: FileRow, *, lifetime: timedelta | None = None) -> None:
    """Adds the row, or replaces one of the same id. It is there for `lifetime` from now; None: until it is deleted."""
    file.expires_at = None if lifetime is None else func.now() + lifetime
    session.merge(file)


def add(session: Session, file: FileRow, *, lifetime: timedelta | None = None) -> FileRow:
    """As `put`, for a file that is new."""
    file.expires_at = None if lifetime is None else func.now() + lifetime
    session.add(file)
    session.flush()
    session.refresh(file)
    return file


def _is_there() -> ColumnElement[bool]:
    """An expired file is gone at once, although upkeep removes it later."""
    return or_(FileRow.expires_at.is_(None), FileRow.expires_at > func.now())


def find(session: Session, file_id: str, *, tenant: str) -> FileRow:
    """Raises NotFound when this tenant has no such file, or it has expired."""
    file = session.scalar(select(FileRow).where(FileRow.id == file_id, FileRow.tenant == tenant, _is_there()))
    if file is None:
        raise NotFound(f"no file with id {file_id!r}", param="file_id")
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePage:
    """after: the id of the last file of the page before."""

    purpose: str | None = None
    after: str | None = None
    is_newest_first: bool = True
    limit: int


def list_files(session: Session, page: FilePage, *, tenant: str) -> Sequence[FileRow]:
    """In order of time. Raises NotFound for an unknown `after`."""
    position = tuple_(FileRow.created_at, FileRow.id)
    query = select(FileRow).where(FileRow.tenant == tenant, _is_there())
    if page.purpose is not None:
        query = query.where(FileRow.purpose == page.purpose)
    if page.after is not None:
        last = find(session, page.after, tenant=tenant)
        mark = tuple_(literal(last.created_at), literal(last.id))
        query = query.where(position < mark if page.is_newest_first else position > mark)
    columns = (FileRow.created_at, FileRow.id)
    ordering = [column.desc() if page.is_newest_first else column.asc() for column in columns]
    return session.scalars(query.order_by(*ordering).limit(page.limit)).all()


def remove(session: Session, file_id: str, *, tenant: str) -> None:
    """Raises NotFound when this tenant has no such file."""
    session.delete(find(session, file_id, tenant=tenant))


def _even(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of BLOCK_BYTES; an empty file is one empty block."""
    buffer = bytearray()
    is_empty = True
    for block in blocks:
        buffer += block
        while len(buffer) >= BLOCK_BYTES:
            yield bytes(buffer[:BLOCK_BYTES])
            del buffer[:BLOCK_BYTES]
            is_empty = False
    if buffer or is_empty:
        yield bytes(buffer)
