"""The `millrace` command. Every failure that we know of is a sentence on standard error; status 2 is a wrong command
line or setting, status 1 everything else. Commands import what they need when they run, so that help comes at once.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.artifacts.commands import commands as artifacts
from cli.options import InvalidOption, Json, Url, read_settings, server_at
from cli.webhooks.commands import commands as webhooks
from core.access import Limits, Scope
from core.errors import MillraceError
from core.job import DEFAULT_TENANT, MAX_PRIORITY, MIN_PRIORITY

app = typer.Typer(
    name="millrace",
    help="LLM jobs on your own GPUs with Celery, Redis and PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[str | None, typer.Option(help="Where everything is kept (MILLRACE_DATA_DIR).")]
Host = Annotated[str | None, typer.Option(help="Address of the API; Flower stays on loopback (MILLRACE_HOST).")]
Port = Annotated[int | None, typer.Option(help="Port of the API (MILLRACE_PORT).")]
FlowerPort = Annotated[int | None, typer.Option(help="Port of Flower (MILLRACE_FLOWER_PORT).")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model to serve: a hub name, a directory or name=source; may be repeated."),
]
Device = Annotated[str | None, typer.Option(help="`auto`, `cpu`, or GPU indices or UUIDs (MILLRACE_DEVICES).")]


Out = Annotated[Path, typer.Option(help="Where the answers go; failures go beside it.")]

batches = typer.Typer(name="batch", help="Run files of requests and fetch their answers.", no_args_is_help=True)
app.add_typer(batches)

keys = typer.Typer(name="keys", help="Say who may use the API.", no_args_is_help=True)
app.add_typer(keys)

app.add_typer(webhooks)
app.add_typer(artifacts)

Tenant = Annotated[str, typer.Option(help="Whose work it is: keys of one tenant see each other's.")]
Requests = Annotated[int | None, typer.Option(min=1, help="Online requests a minute at most.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Prompt and answer tokens a minute at most.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Jobs and online requests at once at most.")]


@app.callback()
def millrace() -> None:
    """Without it Typer would make the only command the whole program."""


@app.command()
def up(
    host: Host = None,
    port: Port = None,
    flower_port: FlowerPort = None,
    data_dir: DataDir = None,
    model: Models = None,
    device: Device = None,
    flower: Annotated[bool, typer.Option(help="Whether to start Flower.")] = True,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C."""
    from cli.local.up import up as run_up

    overrides = {
        "host": host,
        "port": port,
        "flower_port": flower_port,
        "data_dir": data_dir,
        "models": ",".join(model) if model else None,
        "devices": device,
    }
    run_up(read_settings(overrides), with_flower=flower)


@app.command()
def doctor(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is there, what is missing, and how to mend it. Exit status 1 when something is."""
    from cli.doctor import doctor as run_doctor

    if not run_doctor(read_settings({"data_dir": data_dir}), as_json):
        raise typer.Exit(1)


@app.command()
def demo(data_dir: DataDir = None) -> None:
    """Run a batch of questions on this machine: starts everything, shows the answers, stops everything."""
    from cli.demo import demo as run_demo

    run_demo(read_settings({"data_dir": data_dir}))


@app.command()
def migrate() -> None:
    """Bring the database to the schema of this release."""
    from cli.local.production import migrate as run_migrate

    run_migrate(read_settings())


@app.command()
def node(data_dir: DataDir = None, model: Models = None, device: Device = None) -> None:
    """Run the engines and Celery workers of this machine."""
    from cli.local.production import node as run_node

    overrides = {"data_dir": data_dir, "models": ",".join(model) if model else None, "devices": device}
    run_node(read_settings(overrides))


@app.command()
def api(host: Host = None, port: Port = None) -> None:
    """Run the API alone."""
    from cli.local.production import api as run_api

    run_api(read_settings({"host": host, "port": port}))


@app.command()
def beat() -> None:
    """Run Celery's beat, which sends what runs by the clock."""
    from cli.local.production import beat as run_beat

    run_beat(read_settings())


@app.command()
def flower(host: Host = None, flower_port: FlowerPort = None) -> None:
    """Run the Flower dashboard."""
    from cli.local.production import flower as run_flower

    run_flower(read_settings({"host": host, "flower_port": flower_port}))


@app.command()
def chat(
    question: str,
    model: Annotated[str | None, typer.Option(help="The model to ask; the first one served otherwise.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Answer tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = 0.7,
    url: Url = None,
) -> None:
    """Ask one question."""
    from cli.chat import chat as ask

    ask(server_at(url), question, model, max_tokens, temperature)


@batches.command()
def run(
    source: Annotated[Path, typer.Argument(help="A JSONL file in OpenAI's Batch format.", metavar="IN.jsonl")],
    out: Out,
    model: Annotated[str | None, typer.Option(help="Run every row on this model instead of its own.")] = None,
    window: Annotated[str, typer.Option(help="What has not run by then expires.")] = "24h",
    url: Url = None,
) -> None:
    """Submit a file, follow it, write the answers."""
    from cli.batch import run as run_batch

    run_batch(server_at(url), source, out, model, window)


@batches.command("ls")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20, url: Url = None
) -> None:
    """List batches, newest first."""
    from cli.batch import list_batches as print_batches

    print_batches(server_at(url), limit)


@batches.command()
def show(batch_id: str, url: Url = None) -> None:
    """Show a batch; follow it while it runs."""
    from cli.batch import show as show_batch

    show_batch(server_at(url), batch_id)


@batches.command()
def cancel(batch_id: str, url: Url = None) -> None:
    """Cancel a batch; finished rows are kept."""
    from cli.batch import cancel as cancel_batch

    cancel_batch(server_at(url), batch_id)


@batches.command()
def results(batch_id: str, out: Out, url: Url = None) -> None:
    """Fetch the answers of a batch that has ended."""
    from cli.batch import results as fetch_results

    fetch_results(server_at(url), batch_id, out)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="For whom or what, to know it again.")],
    tenant: Tenant = DEFAULT_TENANT,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="May be repeated, none contains another; `submit` and `read` otherwise.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it ends, such as `90d` or `12h`; never otherwise.")] = None,
    max_priority: Annotated[
        int, typer.Option(min=MIN_PRIORITY, max=MAX_PRIORITY, help="Highest priority of its jobs.")
    ] = MAX_PRIORITY,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    from cli.keys import Wanted, create

    wanted = Wanted(
        name=name,
        tenant=tenant,
        scopes=scope or [],
        expires=expires,
        max_priority=max_priority,
        limits=Limits(requests_per_minute, tokens_per_minute, concurrent_jobs),
    )
    create(read_settings(), wanted, as_json=as_json)


@keys.command("ls")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Of one tenant; of all otherwise.")] = None, as_json: Json = False
) -> None:
    """List keys by their beginnings."""
    from cli.keys import list_keys as print_keys

    print_keys(read_settings(), tenant, as_json=as_json)


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The id or the prefix that `ls` shows.")], as_json: Json = False
) -> None:
    """End a key; within seconds it opens nothing more."""
    from cli.keys import revoke

    revoke(read_settings(), key, as_json=as_json)


@keys.command("limit")
def limit_tenant(
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_jobs: Jobs = None,
) -> None:
    """Set what all keys of a tenant may use together; what is not named is not limited."""
    from cli.keys import limit_tenant as limit

    limit(read_settings(), tenant, Limits(requests_per_minute, tokens_per_minute, concurrent_jobs))


@app.command()
def usage(
    by: Annotated[
        list[str] | None,
        typer.Option(help="`day`, `model`, `key` or `tenant`; may be repeated. Day and model otherwise."),
    ] = None,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Everybody's; needs the scope `admin`.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show what was used: requests, tokens, device seconds and their cost."""
    from cli.operations.usage import usage as print_usage

    print_usage(server_at(url), by or ["day", "model"], is_for_all=all_tenants, as_json=as_json)


QueueModel = Annotated[str | None, typer.Option("--model", help="Only this model; every one otherwise.")]
QueueName = Annotated[str | None, typer.Option("--queue", help="`online`, `batch` or `heavy`; every one otherwise.")]


@app.command()
def queues(as_json: Json = False, url: Url = None) -> None:
    """Show what waits and runs, for each model and class."""
    from cli.operations.queues import queues as print_queues

    print_queues(server_at(url), as_json=as_json)


@app.command()
def pause(model: QueueModel = None, queue: QueueName = None, url: Url = None) -> None:
    """Hold a model, a queue, or both: nothing new is started; what has begun ends, and is shown."""
    from cli.operations.queues import pause as pause_queues

    pause_queues(server_at(url), model, queue)


@app.command()
def resume(model: QueueModel = None, queue: QueueName = None, url: Url = None) -> None:
    """Let a model, a queue, or both go on."""
    from cli.operations.queues import resume as resume_queues

    resume_queues(server_at(url), model, queue)


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except MillraceError as error:
        sys.stderr.write(f"millrace: {error.message}\n")
        sys.exit(2 if isinstance(error, InvalidOption) else 1)


if __name__ == "__main__":
    main()
