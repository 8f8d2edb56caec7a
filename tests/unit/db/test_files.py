import re

import pytest

from core.errors import ConfigurationError
from db.connection import Database
from db.files import PostgresFiles, UrlFiles, new_file_id, open_file_store

DATABASE = Database("postgresql://nobody@/nothing")


def test_files_live_in_postgresql_unless_a_url_is_given() -> None:
    assert isinstance(open_file_store("postgresql", DATABASE), PostgresFiles)
    assert isinstance(open_file_store("memory://store", DATABASE), UrlFiles)


def test_a_store_that_fsspec_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="MILLRACE_FILE_STORE: expected `postgresql` or a URL"):
        open_file_store("nowhere://bucket", DATABASE)


def test_file_ids_look_like_openais_and_do_not_repeat() -> None:
    ids = {new_file_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"file-[0-9a-f]{24}", file_id) for file_id in ids)
