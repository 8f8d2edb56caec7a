"""`millrace doctor`: runs every check, prints what it found for people or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from cli import checks
from cli.checks import Finding, Level
from core.access import key_prefix
from core.settings import PREFIX, Settings


def doctor(settings: Settings, as_json: bool) -> bool:
    """Prints the findings. Whether nothing failed."""
    findings = examine(settings)
    print(to_json(findings, settings) if as_json else to_text(findings, settings))
    return not has_failed(findings)


def examine(settings: Settings) -> list[Finding]:
    return [
        checks.check_python(),
        checks.check_platform(),
        checks.check_engine_extra(settings),
        checks.check_local_extra(settings),
        checks.check_device(settings),
        checks.check_compiler(settings),
        checks.check_memory(),
        checks.check_disk(settings),
        checks.check_running(settings),
        checks.check_postgresql(settings),
        checks.check_valkey(settings),
        checks.check_host(settings),
        checks.check_port(settings, "port", settings.port),
        checks.check_port(settings, "flower port", settings.flower_port),
        *checks.check_models(settings),
    ]


def has_failed(findings: Sequence[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)


def to_text(findings: Sequence[Finding], settings: Settings) -> str:
    width = max(len(finding.name) for finding in findings) + 2
    lines = []
    for finding in findings:
        lines.append(f"  {finding.level.value:<6}{finding.name:<{width}}{finding.text}")
        if finding.mend:
            lines.append(f"  {'':<6}{'':<{width}}-> {finding.mend}")
    lines += [
        "",
        "Settings that differ from their defaults:" if changed(settings) else "All settings have their defaults.",
    ]
    lines += [f"  {name}={value}" for name, value in changed(settings).items()]
    num_failed = sum(finding.level is Level.FAIL for finding in findings)
    lines += ["", f"{num_failed} to mend before `millrace up` can work." if num_failed else "Ready for `millrace up`."]
    return "\n".join(lines)


def to_json(findings: Sequence[Finding], settings: Settings) -> str:
    report = {
        "ok": not has_failed(findings),
        "checks": [asdict(finding) for finding in findings],
        "settings": {field: shown(field, getattr(settings, field)) for field in Settings.__struct_fields__},
    }
    return json.dumps(report, indent=2)


def changed(settings: Settings) -> dict[str, str]:
    """Variable -> value of what differs from the defaults."""
    defaults = Settings()
    return {
        PREFIX + field.upper(): str(shown(field, getattr(settings, field)))
        for field in Settings.__struct_fields__
        if getattr(settings, field) != getattr(defaults, field)
    }


def shown(field: str, value: object) -> object:
    """Without a password, where it is a URL that has one; a key by its beginning."""
    if field == "api_key" and value:
        return f"{key_prefix(str(value))}…"
    if not isinstance(value, str) or "@" not in value:
        return value
    try:
        return make_url(value).render_as_string(hide_password=True)
    except ArgumentError:
        return value
