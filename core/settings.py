"""All settings of Millrace, read from `MILLRACE_…` environment variables here and nowhere else.

A composition root calls `load_settings()` once and hands the parts down. Unknown names are refused with a
suggestion, values are checked, and every field carries its documentation (`docs/reference/settings.md` is made of it).
"""

import difflib
import hashlib
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs
from msgspec import Meta

from core.errors import ConfigurationError
from core.webhooks.addresses import Networks, parse_networks

PREFIX = "MILLRACE_"
BUILTIN_MODEL = "millrace/tiny"

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


def default_data_dir() -> str:
    """`/var/lib/millrace` for root, whose home nobody else may read; the platform's user data directory otherwise."""
    if os.geteuid() == 0:
        return "/var/lib/millrace"
    return platformdirs.user_data_dir("millrace", appauthor=False)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    data_dir: Annotated[
        str, Meta(description="Directory of everything kept on this machine: embedded servers, models, logs.")
    ] = msgspec.field(default_factory=default_data_dir)
    database_url: Annotated[
        str | None,
        Meta(description="PostgreSQL as `postgresql://user@host/name`. Unset: an embedded server is started."),
    ] = None
    redis_url: Annotated[
        str | None,
        Meta(description="Redis or Valkey >= 6.2 as `redis://host:6379/0`. Unset: an embedded one is started."),
    ] = None
    host: Annotated[str, Meta(description="Address the API listens on. Needs an API key where it is not loopback.")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Meta(description="Port of the API.")] = 8700
    trusted_hosts: Annotated[
        str,
        Meta(description="Names besides loopback that requests may be addressed to, separated by commas: a proxy's."),
    ] = ""
    auth: Annotated[
        str,
        Meta(
            description="Whether requests need a key: `required`; `local` (not those that come to a loopback address "
            "and passed no proxy); `auto` is `local` where `millrace up` brings its own servers along, listens on "
            "loopback and trusts no proxy, else `required`.",
            pattern="^(auto|required|local)$",
        ),
    ] = "auto"
    tls_certificate: Annotated[
        str, Meta(description="PEM file with the certificate chain of the API, which then speaks HTTPS alone.")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file with the key of the certificate, without a password.")] = ""
    api_key: Annotated[
        str,
        Meta(
            description="Key that the command line sends. Unset: the one that `millrace up` left in the data "
            "directory, which goes to this machine alone."
        ),
    ] = ""
    flower_port: Annotated[Port, Meta(description="Port of the Flower dashboard.")] = 8701
    models: Annotated[
        str,
        Meta(
            description="Models this node serves, separated by commas: a Hugging Face name, a directory, or "
            "`name=directory` and `name=hub/name`."
        ),
    ] = BUILTIN_MODEL
    node_name: Annotated[str, Meta(description="Name of this machine among the nodes.", min_length=1)] = msgspec.field(
        default_factory=socket.gethostname
    )
    devices: Annotated[
        str, Meta(description="`auto` (every GPU, else the CPU), `cpu`, or GPU indices or UUIDs separated by commas.")
    ] = "auto"
    device: Annotated[str, Meta(description="The device of this worker, set by its agent: `cpu`, `gpu0`, …")] = "cpu"
    engine_endpoint: Annotated[str, Meta(description="ZMQ address of the engine of this worker, set by its agent.")] = (
        ""
    )
    engine_dtype: Annotated[
        str,
        Meta(
            description="Weights and activations: `auto` (as stored), `float32`, `bfloat16` or `float16`.",
            pattern="^(auto|float32|bfloat16|float16)$",
        ),
    ] = "auto"
    engine_slots: Annotated[
        int,
        Meta(ge=0, description="Sequences that an engine runs at once, per model; 0 is 64 on a CPU, 256 on a GPU."),
    ] = 0
    engine_prefill_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="Prompt tokens that an engine processes per step at most; 0 is 2048 on a CPU, 8192 on a GPU. "
            "It takes fewer where somebody would notice.",
        ),
    ] = 0
    engine_threads: Annotated[int, Meta(ge=0, description="CPU threads of an engine; 0 leaves it to torch.")] = 0
    engine_kernels: Annotated[
        str,
        Meta(
            description="`auto` (kernels made for this machine: in C on a CPU, Triton's for norms and rotations on a "
            "GPU) or `torch` (none of them).",
            pattern="^(auto|torch)$",
        ),
    ] = "auto"
    engine_kv: Annotated[
        str,
        Meta(
            description="Where K/V lie: `auto` (pages on a GPU, rows of a grid on a CPU), `rows` or `pages`.",
            pattern="^(auto|rows|pages)$",
        ),
    ] = "auto"
    engine_graphs: Annotated[
        str,
        Meta(
            description="Whether a GPU's decode steps are CUDA graphs: `auto` (where the model allows it), `off`.",
            pattern="^(auto|off)$",
        ),
    ] = "auto"
    engine_prefix_reuse: Annotated[
        str,
        Meta(
            description="Whether a prompt's beginning that was computed before is reused: `on`, `off`.",
            pattern="^(on|off)$",
        ),
    ] = "on"
    engine_max_step_seconds: Annotated[
        float,
        Meta(ge=0, description="A step that takes longer is taken for a stuck device: the engine restarts. 0: never."),
    ] = 120.0
    engine_max_temperature_celsius: Annotated[
        float, Meta(ge=0, description="A GPU hotter than that begins no bulk work until it is 5 degrees below. 0: any.")
    ] = 88.0
    max_context_tokens: Annotated[
        Count, Meta(description="Upper bound of prompt and answer together; a model's own bound applies too.")
    ] = 8192
    chunk_rows: Annotated[
        int, Meta(ge=1, le=10_000, description="Rows in a chunk at most; a chunk is the unit that workers lease.")
    ] = 2000
    chunk_tokens: Annotated[
        Count,
        Meta(
            description="Answer tokens that the rows of a chunk ask for at most; a row without a limit counts as 128. "
            "Tenants take turns by chunks."
        ),
    ] = 65_536
    lease_seconds: Annotated[
        Seconds, Meta(description="How long a chunk belongs to a worker that does not renew. Renewed at a third of it.")
    ] = 15.0
    reconcile_seconds: Annotated[
        Seconds, Meta(description="How often expired leases are taken back and lost messages are sent again.")
    ] = 3.0
    dispatch_window: Annotated[
        Count,
        Meta(description="Messages per model and class kept in Redis; what waits beyond them waits in PostgreSQL."),
    ] = 8
    write_interval_seconds: Annotated[
        Seconds, Meta(description="How often a worker writes finished answers, all of them in one transaction.")
    ] = 0.1
    max_request_crashes: Annotated[
        Count,
        Meta(
            description="Engine crashes while a request runs alone, in a row, after which it fails as `engine_crashed`."
        ),
    ] = 3
    max_request_attempts: Annotated[
        Count,
        Meta(description="Tries of a batch row whose failure another try may mend, before the failure is its outcome."),
    ] = 3
    retry_seconds: Annotated[
        Seconds,
        Meta(description="Wait before the second try of such a row; doubled, and jittered, before each further one."),
    ] = 2.0
    oldest_claim_fraction: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of claims that take the chunk which has waited longest, whatever its priority, so that "
            "the lowest priority moves too.",
        ),
    ] = 0.0625
    batch_threads: Annotated[
        int,
        Meta(ge=0, description="Chunks that the batch worker of a device runs at once; 0 is 2 on a CPU, 8 on a GPU."),
    ] = 0
    online_threads: Annotated[
        Count,
        Meta(
            description="Threads of a device's online worker that take messages. All requests run on one more thread."
        ),
    ] = 2
    engine_wait_seconds: Annotated[
        Seconds, Meta(description="How long a worker waits for its engine before it hands the chunk back.")
    ] = 30.0
    online_timeout_seconds: Annotated[
        Seconds, Meta(description="How long the API waits for the answer to an online request before it cancels it.")
    ] = 600.0
    file_store: Annotated[
        str,
        Meta(
            description="Where files live: `postgresql`, or a URL that fsspec understands, such as "
            "`file:///mnt/shared` or `s3://bucket/prefix`. Every node must reach it."
        ),
    ] = "postgresql"
    max_file_bytes: Annotated[Count, Meta(description="Largest file that is accepted, in bytes.")] = 200 * 1024 * 1024
    file_retention_days: Annotated[
        float,
        Meta(
            ge=0,
            description="How long files are kept whose user asked for no expiry, those that batches write included. "
            "0: until they are deleted.",
        ),
    ] = 30.0
    job_retention_days: Annotated[
        int,
        Meta(
            ge=0,
            description="How long jobs are kept after their end, with their requests and answers; files have an expiry "
            "of their own. 0: for ever.",
        ),
    ] = 30
    online_retention_days: Annotated[
        int,
        Meta(
            ge=0,
            description="The same for answers that somebody waited for; stored responses are no such. 0: for ever.",
        ),
    ] = 1
    artifact_retention_days: Annotated[
        int,
        Meta(
            ge=0,
            description="How long models are kept that quantization jobs made; one that is served stays all the same. "
            "0: until they are deleted.",
        ),
    ] = 0
    webhook_retention_days: Annotated[
        int, Meta(ge=0, description="How long messages to webhooks are shown after they were settled. 0: for ever.")
    ] = 7
    webhook_networks: Annotated[
        str,
        Meta(
            description="Networks that are not public and that webhooks may be sent to all the same, separated by "
            "commas: `10.1.0.0/16,127.0.0.1/32`. Plain HTTP is allowed there."
        ),
    ] = ""
    webhook_timeout_seconds: Annotated[
        Seconds, Meta(description="How long the receiver of a webhook may take to answer before it is tried again.")
    ] = 5.0
    max_batch_rows: Annotated[Count, Meta(description="Most rows of one batch.")] = 50_000
    device_hour_price: Annotated[
        float, Meta(ge=0, description="What an hour of a device costs, in your currency; usage tells costs by it.")
    ] = 0.0
    metrics: Annotated[
        str, Meta(description="Whether `/metrics` answers Prometheus: `on`, `off`.", pattern="^(on|off)$")
    ] = "off"
    max_waiting_requests: Annotated[
        Count, Meta(description="Online requests of a model that wait at once; more are refused with 429 `overloaded`.")
    ] = 1000
    breaker_failures: Annotated[
        Count, Meta(description="Engine failures of a model in a row after which its online requests are refused.")
    ] = 5
    breaker_open_seconds: Annotated[
        Seconds, Meta(description="How long they are refused before one is let through to see whether the model works.")
    ] = 10.0
    log_level: Annotated[
        str, Meta(description="`DEBUG`, `INFO`, `WARNING` or `ERROR`.", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    ] = "INFO"

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().absolute()

    @property
    def artifacts_path(self) -> Path:
        """Directory of the models that jobs make on this node, each under the id of its job."""
        return self.data_path / "artifacts"

    @property
    def run_path(self) -> Path:
        """Directory of the sockets, one per data directory. Short: a Unix socket path has at most 107 bytes."""
        digest = hashlib.sha256(str(self.data_path).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"millrace-{os.geteuid()}-{digest}"

    @property
    def model_sources(self) -> dict[str, str]:
        """Model name -> directory or hub name, in the order given."""
        return parse_models(self.models, self.data_path)

    @property
    def allowed_webhook_networks(self) -> Networks:
        """Raises ConfigurationError."""
        return parse_networks(self.webhook_networks)


def parse_models(text: str, data_path: Path) -> dict[str, str]:
    """Raises ConfigurationError on an empty or doubled name."""
    sources: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, source = item.partition("=")
        if not separator:
            name, source = model_name(item), item
        if not name or not source or name in sources:
            raise ConfigurationError(
                f"{PREFIX}MODELS: expected different names as in `name=directory,hub/name`, got {text!r}"
            )
        sources[name] = builtin_model_directory(data_path) if source == BUILTIN_MODEL else source
    if not sources:
        raise ConfigurationError(f"{PREFIX}MODELS: expected at least one model, got {text!r}; try {BUILTIN_MODEL}")
    return sources


def model_name(source: str) -> str:
    """A directory is named by its last part, a hub name by itself."""
    return Path(source).name if source.startswith((".", "/", "~")) else source


def builtin_model_directory(data_path: Path) -> str:
    return str(data_path / "models" / BUILTIN_MODEL)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Raises ConfigurationError on an unknown name or a value of the wrong kind."""
    environ = os.environ if environ is None else environ
    names = {PREFIX + field.upper(): field for field in Settings.__struct_fields__}
    values: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(PREFIX + "_"):  # MILLRACE__…: internal
            continue
        if variable not in names:
            raise ConfigurationError(_unknown_setting(variable, list(names)))
        if value != "":
            values[names[variable]] = value
    return convert_settings(values)


def convert_settings(values: Mapping[str, object]) -> Settings:
    """`values`: field -> text or value. Raises ConfigurationError naming the variable that is wrong."""
    for field, value in values.items():
        try:
            msgspec.convert({field: value}, Settings, strict=False)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at ")[0]
            raise ConfigurationError(f"{PREFIX}{field.upper()}: {reason}; got {value!r}") from error
    return msgspec.convert(dict(values), Settings, strict=False)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The variables that give a child process exactly these settings."""
    return {
        PREFIX + field.upper(): str(value)
        for field in Settings.__struct_fields__
        if (value := getattr(settings, field)) is not None
    }


def _unknown_setting(variable: str, known: list[str]) -> str:
    fields = [name.removeprefix(PREFIX) for name in known]
    nearest = difflib.get_close_matches(variable.removeprefix(PREFIX), fields, n=1)
    hint = f"did you mean {PREFIX}{nearest[0]}?" if nearest else "docs/reference/settings.md lists all of them"
    return f"unknown setting {variable}: {hint}"
