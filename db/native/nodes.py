"""Nodes and their devices as people look at them: which models they serve, when they were last heard of, and what their
engines said of themselves last."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.protocol import Hello


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """silent_seconds: since it was last said that the device is there. stats: a core.protocol.EngineStats, models: as
    ModelStatus has them; both empty when the engine has not been heard of for STALE_SECONDS."""

    node: str
    device: str
    models: list[str]
    seen_at: datetime
    silent_seconds: float
    stats: dict[str, Any]
    statuses: list[dict[str, Any]]


STALE_SECONDS = 30.0

_DEVICES = text("""
SELECT p.node, p.device, array_agg(p.model ORDER BY p.model), greatest(max(p.seen_at), max(d.seen_at)),
    extract(epoch FROM clock_timestamp() - greatest(max(p.seen_at), max(d.seen_at))),
    (array_agg(d.report) FILTER (WHERE d.seen_at > clock_timestamp() - make_interval(secs => :stale)))[1]
FROM placements p LEFT JOIN devices d ON d.node = p.node AND d.device = p.device
GROUP BY p.node, p.device ORDER BY p.node, p.device
""")

_REPORT = text("""
INSERT INTO devices (node, device, report) VALUES (:node, :device, CAST(:report AS json))
ON CONFLICT (node, device) DO UPDATE SET report = excluded.report, seen_at = clock_timestamp()
""")


def list_devices(session: Session) -> list[DeviceFigures]:
    return [_figures(row) for row in session.execute(_DEVICES, {"stale": STALE_SECONDS})]


def _figures(row: Any) -> DeviceFigures:
    report = row[5] or {}
    return DeviceFigures(
        node=row[0],
        device=row[1],
        models=list(row[2]),
        seen_at=row[3],
        silent_seconds=max(0.0, float(row[4])),
        stats=report.get("stats", {}),
        statuses=report.get("models", []),
    )


def report(session: Session, *, node: str, device: str, hello: Hello) -> None:
    """Replaces what the engine of a device said before."""
    document = msgspec.json.encode({"models": hello.models, "stats": hello.stats}).decode()
    session.execute(_REPORT, {"node": node, "device": device, "report": document})
