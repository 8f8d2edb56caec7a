"""`/v1/files`: upload, list, show, download, delete."""

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import StreamingResponse

from api.context import Context, Ctx, Tenant, page
from api.errors import RequestTooLarge
from core.errors import InvalidRequest
from db import files
from db.files import BLOCK_BYTES, FilePage, new_file_id
from db.tables import FileRow

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSES = ("batch",)


@router.post("", summary="Upload a file")
def create_file(
    context: Ctx, tenant: Tenant, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()]
) -> dict[str, Any]:
    if purpose not in PURPOSES:
        raise InvalidRequest(f"expected purpose `batch`, got {purpose!r}", param="purpose")
    if (file.size or 0) > context.settings.max_file_bytes:
        raise RequestTooLarge(
            f"expected a file of at most {context.settings.max_file_bytes:,} bytes, got {file.size:,}; split it"
        )
    return file_object(_store(context, tenant, file, purpose))


def _store(context: Context, tenant: str, file: UploadFile, purpose: str) -> FileRow:
    file_id = new_file_id()
    filename = (file.filename or "upload.jsonl").replace("\0", "")
    num_bytes = context.files.write(file_id, _blocks(file.file))
    row = FileRow(id=file_id, tenant=tenant, purpose=purpose, filename=filename, num_bytes=num_bytes)
    with context.database.begin() as session:
        return files.add(session, row)


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    while block := source.read(BLOCK_BYTES):
        yield block


@router.get("", summary="List files, newest first")
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


@router.get("/{file_id}", summary="Show a file")
def get_file(context: Ctx, tenant: Tenant, file_id: str) -> dict[str, Any]:
    with context.database.begin() as session:
        return file_object(files.find(session, file_id, tenant=tenant))


@router.get("/{file_id}/content", summary="Download a file", response_class=StreamingResponse)
def get_content(context: Ctx, tenant: Tenant, file_id: str) -> StreamingResponse:
    with context.database.begin() as session:
        row = files.find(session, file_id, tenant=tenant)
    return StreamingResponse(
        context.files.read(file_id),
        media_type="application/octet-stream",
        headers={"Content-Length": str(row.num_bytes)},
    )


@router.delete("/{file_id}", summary="Delete a file")
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
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
    }
