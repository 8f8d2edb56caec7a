"""The commands of `millrace webhooks`. They import what they need when they run, so that help comes at once."""

from typing import Annotated

import typer

from cli.options import Url, server_at
from core.webhooks.events import EventType

commands = typer.Typer(name="webhooks", help="Say who is called when a batch has ended.", no_args_is_help=True)


@commands.command("create")
def create_webhook(
    receiver: Annotated[str, typer.Argument(help="Where to call: https://…", metavar="RECEIVER")],
    event: Annotated[list[EventType], typer.Option(help="What to tell of; may be repeated.")],
    name: Annotated[str, typer.Option(help="What people call it.")] = "millrace",
    url: Url = None,
) -> None:
    """Have a receiver called; prints the secret that signs the messages."""
    from cli.webhooks.endpoints import create

    create(server_at(url), receiver, name, event)


@commands.command("ls")
def list_webhooks(url: Url = None) -> None:
    """List the receivers, newest first."""
    from cli.webhooks.endpoints import list_endpoints

    list_endpoints(server_at(url))


@commands.command("rm")
def remove_webhook(endpoint_id: str, url: Url = None) -> None:
    """Call a receiver no more."""
    from cli.webhooks.endpoints import remove

    remove(server_at(url), endpoint_id)


@commands.command("test")
def try_webhook(
    endpoint_id: str,
    event: Annotated[EventType, typer.Option(help="Which event to make up.")] = EventType.BATCH_COMPLETED,
    url: Url = None,
) -> None:
    """Send a receiver a sample."""
    from cli.webhooks.endpoints import try_out

    try_out(server_at(url), endpoint_id, event)


@commands.command("deliveries")
def list_webhook_deliveries(endpoint_id: str, url: Url = None) -> None:
    """Show what arrived, what is tried again, and what was given up and why."""
    from cli.webhooks.endpoints import list_deliveries

    list_deliveries(server_at(url), endpoint_id)
