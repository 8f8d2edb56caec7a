"""The `millrace` command. Every failure that we know of is a sentence on standard error; status 2 is a wrong command
line or setting, status 1 everything else. Commands import what they need when they run, so that help comes at once.
"""

import signal
import sys
from typing import Annotated

import typer

from core.errors import MillraceError

app = typer.Typer(
    name="millrace",
    help="LLM jobs on your own GPUs with Celery, Redis and PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[str | None, typer.Option(help="Where everything is kept (MILLRACE_DATA_DIR).")]
Host = Annotated[str | None, typer.Option(help="Address of the API, loopback only (MILLRACE_HOST).")]
Port = Annotated[int | None, typer.Option(help="Port of the API (MILLRACE_PORT).")]
FlowerPort = Annotated[int | None, typer.Option(help="Port of Flower (MILLRACE_FLOWER_PORT).")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model to serve: a hub name, a directory or name=source; may be repeated."),
]
Device = Annotated[str | None, typer.Option(help="`auto`, `cpu`, or GPU indices or UUIDs (MILLRACE_DEVICES).")]


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
    from cli.options import read_settings
    from cli.up import up as run_up

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
    from cli.options import read_settings

    if not run_doctor(read_settings({"data_dir": data_dir}), as_json):
        raise typer.Exit(1)


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except MillraceError as error:
        from cli.options import InvalidOption

        sys.stderr.write(f"millrace: {error.message}\n")
        sys.exit(2 if isinstance(error, InvalidOption) else 1)


if __name__ == "__main__":
    main()
