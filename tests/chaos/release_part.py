"""Run as a script, with the tree of a release as PYTHONPATH: keeps one part of that release up, by that release's own
supervisor, until SIGTERM. `release_part.py PART SETTINGS`, the settings as JSON, of which it takes those it knows.

Imports nothing but the packages of the release, and of these only what every release has.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import workers
from cli.local.up import api_part, beat_part
from core.lifeline import follow_parent
from core.settings import Settings, convert_settings
from db.connection import Database
from workers.agent import node_parts, register
from workers.instance import Instance
from workers.part import Part
from workers.supervisor import Supervisor


def main(name: str, given: dict[str, object]) -> None:
    follow_parent()
    settings = convert_settings({key: value for key, value in given.items() if key in Settings.__struct_fields__})
    instance = Instance.of(settings)
    instance.prepare()
    if name.startswith("engine-"):
        _register(settings)
    supervisor = Supervisor(instance, _say)
    with supervisor.signals():
        try:
            supervisor.launch([replace(_named(settings, name), after=())])
            supervisor.wait_ready()
            _say(f"{name} of {Path(str(workers.__file__)).parent.parent} is ready")
            supervisor.run()
        finally:
            supervisor.stop_all()


def _register(settings: Settings) -> None:
    assert settings.database_url is not None
    database = Database(settings.database_url, pool_size=1)
    register(settings, database)
    database.close()


def _named(settings: Settings, name: str) -> Part:
    parts = [*node_parts(settings), api_part(settings), beat_part(settings)]
    return next(part for part in parts if part.name == name)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # whoever started this reads it


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
