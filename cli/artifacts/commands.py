"""The commands of `millrace artifacts`. They import what they need when they run, so that help comes at once."""

from typing import Annotated

import typer

from cli.options import Json, Url, server_at

commands = typer.Typer(name="artifacts", help="Look after the models that jobs made.", no_args_is_help=True)


@commands.command("ls")
def list_artifacts(as_json: Json = False, url: Url = None) -> None:
    """List them, newest first, with their sizes on disk and what is served from them."""
    from cli.artifacts.listing import list_artifacts as print_artifacts

    print_artifacts(server_at(url), as_json=as_json)


@commands.command("rm")
def remove_artifacts(
    artifact_id: Annotated[list[str], typer.Argument(help="As `ls` shows it; may be repeated.")], url: Url = None
) -> None:
    """Remove some; what is served from is refused."""
    from cli.artifacts.listing import remove

    remove(server_at(url), artifact_id)
