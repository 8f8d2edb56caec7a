"""What may be posted to `/api/v1/jobs`: one body per kind of job, told apart by `kind`. Checks shapes, asks no rows."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from core.job import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY
from core.openai.completion import CHAT_ENDPOINT

Priority = Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, description="9 runs first.")]
Metadata = Annotated[dict[str, str], Field(max_length=16)]
Deadline = Annotated[AwareDatetime, Field(description="What has not run by then expires.")]


class JobBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    priority: Priority = DEFAULT_PRIORITY
    deadline: Deadline | None = None
    metadata: Metadata | None = None


class InlineRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    custom_id: str | None = Field(None, description="`request-<index>` where it is left out.")
    body: dict[str, Any] = Field(description="As it would be posted to the endpoint.")


class InferenceBody(JobBody):
    """Exactly one of `prompts`, `requests` and `input_file_id`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "kind": "inference",
                "model": "millrace/tiny",
                "prompts": ["What is a list?", "What is a tuple?"],
                "parameters": {"max_tokens": 32},
                "priority": 7,
            }
        },
    )

    kind: Literal["inference"]
    endpoint: str = CHAT_ENDPOINT
    model: str | None = Field(None, description="Of all requests that name none.")
    prompts: list[str] | None = Field(None, min_length=1, description="Each becomes a request of its own.")
    parameters: dict[str, Any] | None = Field(None, description="Added to every request that lacks them.")
    requests: list[InlineRequest] | None = Field(None, min_length=1)
    input_file_id: str | None = Field(None, description="A file in OpenAI's Batch format, as for `/v1/batches`.")

    @model_validator(mode="after")
    def _has_one_source(self) -> "InferenceBody":
        given = [name for name in ("prompts", "requests", "input_file_id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of prompts, requests and input_file_id, got {' and '.join(given) or 'none'}"
            )
        if self.input_file_id is not None and self.parameters is not None:
            raise ValueError("parameters: the requests of a file have their own; leave it out")
        return self


class JobPatch(BaseModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"priority": 9}})

    priority: Priority | None = None
    deadline: Deadline | None = None
    metadata: Metadata | None = None
