"""Chunks: claiming them under a lease, writing outcomes under its fencing token, giving them back.

Every write of a worker begins with an `UPDATE chunks … WHERE id, owner and attempt match`, which holds that row to the
commit: a worker whose lease was taken finds no row, raises LeaseLost and has written nothing.
"""

from db.chunks.claiming import Backlog, backlog, claim, claim_online
from db.chunks.lease import LEASE_COLUMNS, Crash, Lease, Outcome, Request, Retry, WriteResult, lease_of
from db.chunks.leases import Held, Standing, clamp, expire, renew, standing
from db.chunks.writing import cancel_waiting, delay, hand_back, unfinished, wake_delayed, write

__all__ = [
    "LEASE_COLUMNS",
    "Backlog",
    "Crash",
    "Held",
    "Lease",
    "Outcome",
    "Request",
    "Retry",
    "Standing",
    "WriteResult",
    "backlog",
    "cancel_waiting",
    "claim",
    "claim_online",
    "clamp",
    "delay",
    "expire",
    "hand_back",
    "lease_of",
    "renew",
    "standing",
    "unfinished",
    "wake_delayed",
    "write",
]
