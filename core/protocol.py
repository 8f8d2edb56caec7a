"""What travels between an engine and its clients over ZMQ: msgspec structs, MessagePack on the wire.

An engine binds one ROUTER socket; a client connects a DEALER with an identity of its own. Every frame is one
`ClientFrame` or `EngineFrame` and carries many messages. The engine answers every `Generate` and `Embed` with exactly
one outcome (`Finished`, `Embedded` or `Failed`), and a `Generate` with `stream` with `Delta`s before it. It greets a
client with `Hello` and repeats it as a heartbeat every `HEARTBEAT_SECONDS`; a changed `boot_id` tells that the process
was restarted, a changed `session` that it had given this client up: either way everything in flight is gone. A client
keeps at most `Hello.credits` requests in flight and sends `Ping` while idle; the engine cancels the requests of a
client it has not heard of for `CLIENT_SILENCE_SECONDS`.

Frames can be lost where a connection breaks. To a client that has sent one `Ack`, an empty one will do, outcomes are
sent again until it acknowledges them, when its connection is back and every `RESEND_SECONDS`; it ignores those that it
has already. What it has waited for long it asks about with `Confirm`: it may never have arrived. It sends its `Ack`s
before anything else in a frame, and `Ack` and `Confirm` only to an engine whose `Hello` says `takes_acks`.
"""

from typing import Any

import msgspec

HEARTBEAT_SECONDS = 1.0
CLIENT_SILENCE_SECONDS = 15.0
RESEND_SECONDS = 2.0
CONFIRM_SECONDS = 5.0

MODEL_LOADING = "loading"
MODEL_READY = "ready"
MODEL_UNLOADED = "unloaded"
MODEL_FAILED = "failed"

GENERATOR = "generator"
EMBEDDER = "embedder"
ANYTHING = "anything"

BULK_PRIORITY = 0
ONLINE_PRIORITY = 10


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How answer tokens are chosen.

    max_tokens: answer tokens at most, >= 1; None fills the context.
    temperature: >= 0; 0 is greedy.  top_p: (0, 1].  top_k: 0 is off.
    seed: same seed, prompt and parameters give the same tokens whatever else is in the batch (fp32).
    stop: the answer ends before the first of these strings, which is not part of it.
    stop_token_ids: the answer ends at the first of these tokens, which is not part of its text.
    min_tokens: no end token, stop token or stop string ends the answer before it has this many; >= 0.
    min_p: [0, 1]; leaves tokens at least this fraction as probable as the most probable one; 0 is off.
    repetition_penalty: > 0; divides positive and multiplies negative logits of tokens in prompt or answer; 1 is off.
    presence_penalty, frequency_penalty: [-2, 2]; subtracted from the logits of tokens of the answer, once or per
    occurrence, as OpenAI defines them.
    logit_bias: token id -> what is added to its logit, [-100, 100].
    num_logprobs: None gives no log-probabilities, 0 the chosen tokens' alone, more as many of the most probable too.
    json_schema: a JSON schema as text; the answer is JSON that fits it.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    num_logprobs: int | None = None
    json_schema: str | None = None


class Generate(msgspec.Struct, frozen=True, omit_defaults=True, tag="generate"):
    """One prompt, in exactly one of three forms: chat `messages`, a `text`, or `token_ids`.

    id: unique among the client's requests in flight; a client that acknowledges never uses one a second time.
    priority: higher runs first; first come, first served within one priority.
    num_answers: how many answers to the same prompt; with a seed, answer i is drawn with seed + i.
    timeout_seconds: since its arrival at the engine; then it fails with code `deadline_exceeded`. None is never.
    prefix_scope: K/V of a prompt's beginning are shared only between requests of the same scope (a tenant, say).
    tools: functions that the chat template tells the model of, as OpenAI writes them. tool_format: how calls are
    written, where a schema forces it; empty is as the template has it.
    is_alone: it begins when nothing else runs on the engine, for whatever model, is announced by `Begun`, and nothing
    else begins until it has ended: should the engine die after `Begun`, nothing but this request can be to blame.
    """

    id: str
    model: str
    sampling: Sampling = Sampling()
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    priority: int = BULK_PRIORITY
    stream: bool = False
    num_answers: int = 1
    timeout_seconds: float | None = None
    prefix_scope: str = ""
    is_alone: bool = False
    tools: list[dict[str, Any]] | None = None
    tool_format: str = ""


class Embed(msgspec.Struct, frozen=True, omit_defaults=True, tag="embed"):
    """Texts, or token ids, whose embeddings are wanted; answered by one `Embedded` or `Failed`.

    dimensions: leading dimensions to keep, renormalised; None keeps all.  is_alone: as of `Generate`.
    """

    id: str
    model: str
    texts: list[str] | None = None
    token_ids: list[list[int]] | None = None
    dimensions: int | None = None
    priority: int = BULK_PRIORITY
    timeout_seconds: float | None = None
    is_alone: bool = False


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Takes effect at the next step; each id still gets its one outcome, as a rule a `Failed` of code `cancelled`."""

    ids: list[str]


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Bring a model into memory now instead of at its first request. `Hello.models` shows the progress."""

    model: str


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Give a model's memory back; its waiting and running requests fail with code `model_unloaded`."""

    model: str


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """The outcomes of these requests have arrived. None at all says that acknowledgements will come."""

    ids: list[str]


class Confirm(msgspec.Struct, frozen=True, tag="confirm"):
    """Whether these requests, sent at least `CONFIRM_SECONDS` ago, are known; those that are not fail as retryable
    `interrupted`."""

    ids: list[str]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Says that the client lives and asks for a `Hello`."""


class TopToken(msgspec.Struct, frozen=True):
    """text: what the token alone decodes to; `bytes` says what that cannot, half a character for one."""

    text: str
    bytes: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer. logprob: natural logarithm, of the model's own distribution before any parameter of
    `Sampling`. top: the most probable tokens at its place, falling."""

    text: str
    bytes: bytes
    logprob: float
    top: list[TopToken] = []


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """Of a request with `is_alone`: nothing else runs, and it begins a moment later, so that this has arrived by
    then."""

    id: str


class Delta(msgspec.Struct, frozen=True, omit_defaults=True, tag="delta"):
    """Text that has become certain since the last one: never half a character, never part of a stop string.

    index: of the answer, where there are several. logprobs: of the tokens since the last delta, where asked for.
    prompt_tokens: of the request, the same in every delta. tool_format: how calls in it are written, where there are
    tools and it is known: see core.openai.tool_calls.
    """

    id: str
    text: str
    num_tokens: int
    index: int = 0
    logprobs: list[TokenLogprob] | None = None
    prompt_tokens: int = 0
    tool_format: str = ""


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timing(msgspec.Struct, frozen=True):
    """Seconds on the engine's monotonic clock since the request arrived there.

    queue_seconds: until its prefill began.  first_token_seconds: TTFT, 0 when no token came.
    total_seconds: until it ended.  device_seconds: its share of the device: the seconds of every step that it was in,
    divided by the tokens that the step processed; 0 where the model does not tell.
    """

    queue_seconds: float
    first_token_seconds: float
    total_seconds: float
    device_seconds: float = 0.0


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer. finish_reason: `stop` (end token, stop token or stop string) or `length`."""

    text: str
    finish_reason: str
    logprobs: list[TokenLogprob] | None = None


class Finished(msgspec.Struct, frozen=True, omit_defaults=True, tag="finished"):
    """text, finish_reason, logprobs: of the first answer. more: the others, where several were asked for.

    usage: completion tokens of all answers together, prompt tokens once. tool_format: as of `Delta`.
    """

    id: str
    text: str
    finish_reason: str
    usage: Usage
    timing: Timing
    logprobs: list[TokenLogprob] | None = None
    more: list[Choice] = []
    tool_format: str = ""

    @property
    def choices(self) -> list[Choice]:
        return [Choice(self.text, self.finish_reason, self.logprobs), *self.more]


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """embeddings: one per input, float32 in little-endian order, so 4 bytes per dimension."""

    id: str
    embeddings: list[bytes]
    usage: Usage
    timing: Timing


class Spent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request had used when it ended without an answer. prompt_tokens: those that were computed or known, of
    which cached_tokens were known.  device_seconds: as of `Timing`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    device_seconds: float = 0.0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """code: one of core.errors (`invalid_request`, `context_length_exceeded`, `model_failure`, `overloaded`,
    `interrupted` by the engine's own end), `cancelled`, `deadline_exceeded`, `model_not_loaded`, `model_not_found` or
    `model_unloaded`. is_retryable: another try later may succeed. spent: where it had begun."""

    id: str
    code: str
    message: str
    is_retryable: bool = False
    spent: Spent | None = None


class ModelStatus(msgspec.Struct, frozen=True):
    """state: `loading`, `ready`, `unloaded` (loads at its first request) or `failed` (tried again later; see `error`).

    context_tokens: prompt and answer together.
    kind: `generator` answers prompts, `embedder` embeds texts, `anything` does both; empty while it is not known.
    """

    name: str
    state: str
    context_tokens: int = 0
    weight_bytes: int = 0
    error: str = ""
    kind: str = ""


class Phase(msgspec.Struct, frozen=True):
    """Steps of one kind, and the seconds they took together."""

    num_steps: int = 0
    seconds: float = 0.0


class DeviceReading(msgspec.Struct, frozen=True):
    """What the sensors of a device say; None where it has no such sensor. utilization_fraction: of time, [0, 1]."""

    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_fraction: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None


class EngineStats(msgspec.Struct, frozen=True):
    """Counters since loading (`num_*_total`, `*_tokens_total`, phases, `rows_histogram`) and gauges of all models that
    are loaded.

    num_waiting: requests that have not begun, in line or not looked at yet. kv_used_fraction: of the fullest model.
    prefill, decode, mixed: steps with prompt tokens alone, with decoding sequences alone, and with both.
    rows_histogram: steps by the number of sequences in them; entry k counts those with more than 2**(k-1) and at most
    2**k. completion_tokens_per_second: over the last seconds. prefix_hit_tokens_total: prompt tokens that a known
    prefix spared, of the prefix_lookup_tokens_total that were looked up. process_memory_bytes: resident, of the engine.
    step_age_seconds: how long the turn under way has lasted; 0 between two. is_throttled: the device is too hot to
    begin bulk work.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_slots: int = 0
    num_steps_total: int = 0
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    step_seconds_total: float = 0.0
    kv_used_fraction: float = 0.0
    prefill: Phase = Phase()
    decode: Phase = Phase()
    mixed: Phase = Phase()
    rows_histogram: list[int] = []
    completion_tokens_per_second: float = 0.0
    num_preemptions_total: int = 0
    prefix_hit_tokens_total: int = 0
    prefix_lookup_tokens_total: int = 0
    process_memory_bytes: int = 0
    step_age_seconds: float = 0.0
    is_throttled: bool = False
    device: DeviceReading | None = None


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """session: counts the engine's clients; a client that was given up and speaks again has a new one.

    version: of the protocol; 0 is an engine from before it was counted. understood: the fields that it reads of the
    requests, as `FIELDS` names them. is_ending: it was asked to end and takes nothing new, and what is in flight fails
    as `interrupted`.
    """

    boot_id: str
    device: str
    credits: int
    models: list[ModelStatus]
    stats: EngineStats
    session: int = 0
    takes_acks: bool = False
    version: int = 0
    understood: tuple[str, ...] = ()
    is_ending: bool = False


ClientMessage = Generate | Embed | Cancel | Load | Unload | Ack | Confirm | Ping
Outcome = Finished | Embedded | Failed
EngineMessage = Hello | Begun | Delta | Outcome


class ClientFrame(msgspec.Struct, frozen=True):
    messages: list[ClientMessage]


class EngineFrame(msgspec.Struct, frozen=True):
    messages: list[EngineMessage]


VERSION = 1
FIELDS = tuple(f"{kind.__name__}.{name}" for kind in (Generate, Embed, Sampling) for name in kind.__struct_fields__)

_encoder = msgspec.msgpack.Encoder()
_client_decoder = msgspec.msgpack.Decoder(ClientFrame)
_engine_decoder = msgspec.msgpack.Decoder(EngineFrame)


def encode(frame: ClientFrame | EngineFrame) -> bytes:
    return _encoder.encode(frame)


def decode_client(data: bytes) -> ClientFrame:
    """Raises msgspec.DecodeError on anything that is not a ClientFrame."""
    return _client_decoder.decode(data)


def decode_engine(data: bytes) -> EngineFrame:
    """Raises msgspec.DecodeError on anything that is not an EngineFrame."""
    return _engine_decoder.decode(data)
