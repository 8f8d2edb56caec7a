"""Who asks, and what they may: keys, scopes, limits, the identity that a request acts under. Knows neither HTTP nor
where keys are kept. A key is 256 random bits, so its SHA-256 is as good as a slow hash and can be looked up by index.
"""

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass
from enum import StrEnum

from core.job import DEFAULT_TENANT, MAX_PRIORITY

KEY_MARK = "mr_"
KEY_BYTES = 32
PREFIX_CHARACTERS = 10  # of a key, shown in lists so that people know it again: 42 of its 256 bits


class Scope(StrEnum):
    """What a key may do: create and cancel, look, or run the place (keys, nodes, queues)."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)
DEFAULT_SCOPES = frozenset({Scope.SUBMIT, Scope.READ})


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_jobs: int | None = None


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request may see and do. `key_id` is None for somebody on this machine who needs no key."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: int | None = None
    max_priority: int = MAX_PRIORITY
    limits: Limits = UNLIMITED
    tenant_limits: Limits = UNLIMITED


LOCAL_IDENTITY = Identity(DEFAULT_TENANT, ALL_SCOPES)


def new_key() -> str:
    return KEY_MARK + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: str) -> bytes:
    """SHA-256, 32 bytes: all that is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def is_loopback(host: str) -> bool:
    """Whether no other machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_prefix(key: str) -> str:
    return key[:PREFIX_CHARACTERS]
