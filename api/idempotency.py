"""The `Idempotency-Key` header: a POST that carries one creates its object once, however often it is sent.

A route asks for `Once` and, inside the transaction of its insert, calls `recall` and `remember` of `db.idempotency`.
Bodies are compared by hash: the bytes of a JSON body, the fields and the content of a form.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.concurrency import run_in_threadpool

from api.context import Tenant
from db.idempotency import Key

MAX_KEY_CHARACTERS = 255
QUICK_BYTES = 65_536  # hashed in less time than a thread takes to be found

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_CHARACTERS,
        description="Sent again with the same body, the request returns what it made the first time. Kept 24 hours.",
    ),
]


async def key_of_body(request: Request, tenant: Tenant, idempotency_key: KeyHeader = None) -> Key | None:
    """The key of a request whose body is not a form; None without the header."""
    if idempotency_key is None:
        return None
    body = await request.body()
    digest = _digest(body) if len(body) <= QUICK_BYTES else await run_in_threadpool(_digest, body)
    return Key(tenant, request.url.path, idempotency_key, digest)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


Once = Annotated[Key | None, Depends(key_of_body)]


def hash_form(fields: Mapping[str, object], content: Iterable[bytes]) -> bytes:
    """Of the fields, whatever their order, and of a file as it streams by."""
    digest = hashlib.sha256(repr(sorted((name, str(value)) for name, value in fields.items())).encode())
    for block in content:
        digest.update(block)
    return digest.digest()
