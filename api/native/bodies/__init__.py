"""What may be posted to `/api/v1/jobs`: one body per kind of job, told apart by `kind`. Checks shapes, asks no rows."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from core.heavy import WORKLOADS, Quantization, Warming, Workload
from core.job import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY
from core.openai.completion import CHAT_ENDPOINT

Priority = Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, description="9 runs first.")]
# Of a benchmark: at 1,000 tokens a second, three hours.
MOST_TOKENS = 10_000_000
MOST_REQUEST_TOKENS = 131_072

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


class HeavyBody(JobBody):
    """Of the kinds that are no inference: they run on a node that serves the model."""

    model: str
    node: str | None = Field(None, description="The only node that may run it; any that serves the model otherwise.")


class WarmingBody(HeavyBody):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"kind": "warming", "model": "millrace/tiny", "prompts": ["You are helpful."]}},
    )

    kind: Literal["warming"]
    prompts: list[str] = Field([], max_length=1000, description="Run on the model once it is loaded.")
    max_tokens: int = Field(1, ge=1, le=MOST_REQUEST_TOKENS, description="Answer tokens of each prompt.")

    def parameters(self) -> Warming:
        return Warming(self.prompts, self.max_tokens)


class BenchmarkBody(HeavyBody):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"kind": "benchmark", "model": "millrace/tiny", "workload": "chat", "concurrency": 8}
        },
    )

    kind: Literal["benchmark"]
    workload: Literal["short", "chat", "long"] = Field("chat", description="Lengths and numbers, unless given.")
    prompt_tokens: int | None = Field(None, ge=1, le=MOST_REQUEST_TOKENS)
    answer_tokens: int | None = Field(None, ge=1, le=MOST_REQUEST_TOKENS)
    num_requests: int | None = Field(None, ge=1, le=100_000)
    concurrency: int | None = Field(None, ge=1, le=10_000)

    @model_validator(mode="after")
    def _is_bounded(self) -> "BenchmarkBody":
        wanted = self.parameters()
        num_tokens = wanted.num_requests * (wanted.prompt_tokens + wanted.answer_tokens)
        if num_tokens > MOST_TOKENS:
            raise ValueError(
                f"expected at most {MOST_TOKENS:,} tokens of prompts and answers in all, got {num_tokens:,}: ask for "
                "fewer or shorter requests"
            )
        return self

    def parameters(self) -> Workload:
        named = WORKLOADS[self.workload]
        return Workload(
            prompt_tokens=self.prompt_tokens or named.prompt_tokens,
            answer_tokens=self.answer_tokens or named.answer_tokens,
            num_requests=self.num_requests or named.num_requests,
            concurrency=self.concurrency or named.concurrency,
        )


class QuantizationBody(HeavyBody):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"kind": "quantization", "model": "millrace/tiny", "method": "nf4"}},
    )

    kind: Literal["quantization"]
    method: Literal["nf4", "int8"]
    name: str | None = Field(
        None, min_length=1, max_length=200, pattern=r"^[^\x00]+$", description="Of the artifact; made up otherwise."
    )

    def parameters(self) -> Quantization:
        return Quantization(self.method, self.name or f"{self.model}-{self.method}")


AnyJob = InferenceBody | WarmingBody | BenchmarkBody | QuantizationBody
AnyJobBody = Annotated[AnyJob, Field(discriminator="kind", title="Job")]


class JobPatch(BaseModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"priority": 9}})

    priority: Priority | None = None
    deadline: Deadline | None = None
    metadata: Metadata | None = None
