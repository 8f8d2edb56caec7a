"""`/v1/files`: upload, list, show, download, delete."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from api.access.scopes import READ, SUBMIT
from api.context import Context, Ctx, Tenant, page
from api.errors import RequestTooLarge
from api.idempotency import KeyHeader, hash_form
from core.errors import InvalidRequest, Unsupported
from core.settings import Settings
from db import files, idempotency
from db.files import BLOCK_BYTES, FilePage, new_file_id
from db.idempotency import Key
from db.tables import FileRow

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSES = ("batch", "user_data")
UNSUPPORTED_PURPOSES = ("assistants", "evals", "fine-tune", "vision")
MIN_EXPIRY_SECONDS, MAX_EXPIRY_SECONDS = 3600, 30 * 24 * 3600

ExpirySeconds = Annotated[
    int | None, Form(alias="expires_after[seconds]", ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)
]


@router.post("", summary="Upload a file", dependencies=[SUBMIT])
def create_file(
    context: Ctx,
    tenant: Tenant,
    request: Request,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: ExpirySeconds = None,
    idempotency_key: KeyHeader = None,
) -> dict[str, Any]:
    _check_purpose(purpose)
    if (anchor is None) != (seconds is None):
        raise InvalidRequest("expected both `anchor` and `seconds` in expires_after, got one", param="expires_after")
    if (file.size or 0) > context.settings.max_file_bytes:
        raise RequestTooLarge(
            f"expected a file of at most {context.settings.max_file_bytes:,} bytes, got {file.size:,}; split it"
        )
    row = FileRow(id=new_file_id(), tenant=tenant, purpose=purpose, filename=_filename(file))
    key = None
    if idempotency_key is not None:
        fields = {"purpose": purpose, "filename": row.filename, "seconds": seconds}
        key = Key(tenant, request.url.path, idempotency_key, hash_form(fields, _blocks(file.file)))
    return file_object(_store(context, row, file.file, key, lifetime_of(context.settings, seconds)))


def _check_purpose(purpose: str) -> None:
    offered = " or ".join(f"`{name}`" for name in PURPOSES)
    if purpose in UNSUPPORTED_PURPOSES:
        raise Unsupported(
            f"purpose {purpose!r}: nothing here would read such a file; expected {offered}", param="purpose"
        )
    if purpose not in PURPOSES:
        raise InvalidRequest(f"expected purpose {offered}, got {purpose!r}", param="purpose")


def _filename(file: UploadFile) -> str:
    return (file.filename or "upload.jsonl").replace("\0", "")


def lifetime_of(settings: Settings, seconds: int | None) -> timedelta | None:
    """Of a file whose user asked for `seconds`, or for nothing."""
    if seconds is not None:
        return timedelta(seconds=seconds)
    return timedelta(days=settings.file_retention_days) if settings.file_retention_days else None


def _store(context: Context, row: FileRow, source: BinaryIO, key: Key | None, lifetime: timedelta | None) -> FileRow:
    """Bytes come before the row, so that a file that can be found is whole. Of two calls at once both write bytes, and
    those of the second go again."""
    with context.database.begin() as session:
        earlier = idempotency.recall(session, key)
        if earlier is not None:
            return files.find(session, earlier, tenant=row.tenant)
    row.num_bytes = context.files.write(row.id, _blocks(source))
    with context.database.begin() as session:
        earlier = idempotency.recall(session, key)
        if earlier is None:
            idempotency.remember(session, key, row.id)
            return files.add(session, row, lifetime=lifetime)
        found = files.find(session, earlier, tenant=row.tenant)
    context.files.delete(row.id)
    return found


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    source.seek(0)
    while block := source.read(BLOCK_BYTES):
        yield block


@router.get("", summary="List files, newest first", dependencies=[READ])
def list_files(
    context: Ctx,
    tenant: Tenant,
    purpose: str | None = None,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
) -> dict[str, Any]:
    wanted = FilePage(purpose=purpose, after=after, is_newest_first=order == "desc", limit=limit + 1)
    with context.database.begin() as session:
        rows = files.list_files(session, wanted, tenant=tenant)
    return page([file_object(row) for row in rows], limit)


@router.get("/{file_id}", summary="Show a file", dependencies=[READ])
def get_file(context: Ctx, tenant: Tenant, file_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        return file_object(files.find(session, file_id, tenant=tenant))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=StreamingResponse,
    responses={200: {"description": "Its bytes", "content": {"application/octet-stream": {}}}},
    dependencies=[READ],
)
def get_content(context: Ctx, tenant: Tenant, file_id: str) -> StreamingResponse:
    with context.database.begin() as session:
        row = files.find(session, file_id, tenant=tenant)
    return StreamingResponse(
        context.files.read(file_id),
        media_type="application/octet-stream",
        headers={"Content-Length": str(row.num_bytes)},
    )


@router.delete("/{file_id}", summary="Delete a file", dependencies=[SUBMIT])
def delete_file(context: Ctx, tenant: Tenant, file_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        files.remove(session, file_id, tenant=tenant)
    context.files.delete(file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def file_object(row: FileRow) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.num_bytes,
        "created_at": int(row.created_at.timestamp()),
        "expires_at": None if row.expires_at is None else int(row.expires_at.timestamp()),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }
