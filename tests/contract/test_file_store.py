"""What every file store promises, over PostgreSQL and over a directory that nodes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ConfigurationError, NotFound
from db.connection import Database
from db.files import BLOCK_BYTES, FileStore, open_file_store


@pytest.fixture(params=["postgresql", "directory"])
def store(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[FileStore]:
    setting = "postgresql" if request.param == "postgresql" else f"file://{tmp_path}/files"
    connection = Database(database)
    yield open_file_store(setting, connection)
    connection.close()


def content_of(store: FileStore, file_id: str) -> bytes:
    return b"".join(store.read(file_id))


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_what_was_written_is_read(store: FileStore, size: int) -> None:
    # Given
    content = bytes(index % 251 for index in range(size))
    # When
    written = store.write("file-a", [content[: size // 3], content[size // 3 :]])
    # Then
    assert written == size
    assert content_of(store, "file-a") == content


def test_a_file_is_read_in_bounded_blocks(store: FileStore) -> None:
    # Given
    store.write("file-a", [b"x" * (2 * BLOCK_BYTES + 5)])
    # When / Then
    assert max(len(block) for block in store.read("file-a")) <= BLOCK_BYTES


def test_writing_again_replaces(store: FileStore) -> None:
    # Given
    store.write("file-a", [b"long " * BLOCK_BYTES])
    # When
    store.write("file-a", [b"short"])
    # Then
    assert content_of(store, "file-a") == b"short"


def test_a_writer_that_fails_leaves_the_old_file(store: FileStore) -> None:
    # Given
    store.write("file-a", [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise OSError("the disk is full")

    # When
    with pytest.raises((OSError, Exception), match="disk is full"):
        store.write("file-a", broken())
    # Then
    assert content_of(store, "file-a") == b"old"


def test_an_unknown_file_is_not_found(store: FileStore) -> None:
    with pytest.raises(NotFound, match="file-nobody"):
        content_of(store, "file-nobody")


def test_a_deleted_file_is_gone_and_deleting_twice_is_harmless(store: FileStore) -> None:
    # Given
    store.write("file-a", [b"x"])
    # When
    store.delete("file-a")
    store.delete("file-a")
    # Then
    with pytest.raises(NotFound):
        content_of(store, "file-a")


def test_a_store_that_fsspec_does_not_know_is_refused(database: str) -> None:
    connection = Database(database)
    with pytest.raises(ConfigurationError, match="MILLRACE_FILE_STORE"):
        open_file_store("carrier-pigeon://loft", connection)
    connection.close()
