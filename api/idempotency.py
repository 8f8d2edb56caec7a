"""The `Idempotency-Key` header: a POST that carries one creates its object once, however often it is sent.

A route asks for `Once` and, inside the transaction of its insert, calls `recall` and `remember` of `db.idempotency`.
Bodies are compared by hash: the bytes of a JSON body, the fields and the content of a form.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import Depends, Header, Request

from api.context import Tenant
from db.idempotency import Key

MAX_KEY_CHARACTERS = 255

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
    return Key(tenant, request.url.path, idempotency_key, hashlib.sha256(await request.body()).digest())


Once = Annotated[Key | None, Depends(key_of_body)]


def hash_form(fields: Mapping[str, object], content: Iterable[bytes]) -> bytes:
    """Of the fields, whatever their order, and of a file as it streams by."""
    digest = hashlib.sha256(repr(sorted((name, str(value)) for name, value in fields.items())).encode())
    for block in content:
        digest.update(block)
    return digest.digest()
