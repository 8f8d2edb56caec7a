"""Settings as a command sees them: the environment, overridden by its options, with every path made absolute because
the parts of a node run in directories of their own. And the options that many commands have.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from core.errors import ConfigurationError
from core.settings import PREFIX, Settings, load_settings

if TYPE_CHECKING:
    from cli.client import Server

Url = Annotated[str | None, typer.Option(help="Where Millrace is; this machine's settings otherwise.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class InvalidOption(ConfigurationError):
    """The command line or the environment is wrong, as opposed to the installation."""


def read_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """overrides: field -> value; None leaves what the environment says. Raises InvalidOption."""
    given = {PREFIX + field.upper(): str(value) for field, value in (overrides or {}).items() if value is not None}
    try:
        return resolve_paths(load_settings({**os.environ, **given}))
    except ConfigurationError as error:
        raise InvalidOption(error.message) from error


def resolve_paths(settings: Settings) -> Settings:
    sources = settings.model_sources
    resolved = {name: _absolute(source) for name, source in sources.items()}
    changed = ",".join(f"{name}={source}" for name, source in resolved.items())
    models = settings.models if resolved == sources else changed
    files = {name: _absolute_file(getattr(settings, name)) for name in ("tls_certificate", "tls_key")}
    return msgspec.structs.replace(settings, data_dir=str(settings.data_path), models=models, **files)


def _absolute_file(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _absolute(source: str) -> str:
    """A hub name stays what it is, unless a directory of that name is here, as transformers has it."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source.startswith((".", "/", "~")) or path.is_dir() else source


def server_at(url: str | None) -> "Server":
    """The client's libraries take their time, so they are loaded only by commands that have something to ask."""
    from cli.client import server_of

    return server_of(read_settings(), url)
