"""Nodes and their devices as people look at them: which models they serve, and when they were last heard of."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """silent_seconds: since it was last said that the device is there."""

    node: str
    device: str
    models: list[str]
    seen_at: datetime
    silent_seconds: float


_DEVICES = text("""
SELECT node, device, array_agg(model ORDER BY model), max(seen_at),
    extract(epoch FROM clock_timestamp() - max(seen_at))
FROM placements GROUP BY node, device ORDER BY node, device
""")


def list_devices(session: Session) -> list[DeviceFigures]:
    return [
        DeviceFigures(node=row[0], device=row[1], models=list(row[2]), seen_at=row[3], silent_seconds=float(row[4]))
        for row in session.execute(_DEVICES)
    ]
