"""Who is struck and in which order: a pure function of the seed."""

import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """A kind of victim. `agent` is a `millrace node`; `supervisor` is `millrace up`, whose end takes servers, API and
    beat with it."""

    ONLINE = "online worker"
    BATCH = "batch worker"
    CONTROL = "control worker"
    UPKEEP = "upkeep worker"
    ENGINE = "engine"
    AGENT = "agent"
    SUPERVISOR = "supervisor"
    API = "API"
    BEAT = "beat"
    VALKEY = "Valkey"
    POSTGRESQL = "PostgreSQL"


PAUSABLE = (Kind.BATCH, Kind.ENGINE, Kind.VALKEY, Kind.ONLINE, Kind.CONTROL, Kind.UPKEEP, Kind.API, Kind.BEAT)
KILLS_PER_PAUSE = 4


@dataclass(frozen=True, slots=True)
class Strike:
    """SIGKILL, or SIGSTOP and later SIGCONT. pick: chooses among several victims, modulo their number."""

    kind: Kind
    is_pause: bool
    pick: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A strike that found its victim. at_seconds: since 1970."""

    strike: Strike
    at_seconds: float


def plan(seed: int, num_kills: int) -> list[Strike]:
    """Every kind is killed at least once, whatever `num_kills`; a batch worker is paused at least once."""
    chance = random.Random(seed)
    kinds = list(Kind)
    killed = [*kinds, *chance.choices(kinds, k=max(0, num_kills - len(kinds)))]
    paused = [Kind.BATCH, *chance.choices(PAUSABLE, k=max(0, len(killed) // KILLS_PER_PAUSE - 1))]
    marked = [*((kind, False) for kind in killed), *((kind, True) for kind in paused)]
    chance.shuffle(marked)
    return [Strike(kind, is_pause, chance.randrange(1 << 16)) for kind, is_pause in marked]


def never_hit(hits: Iterable[Hit], begin_seconds: float, end_seconds: float) -> list[str]:
    """The kinds that no SIGKILL hit between the first and the last row; `a pause` where no SIGSTOP did."""
    during = [hit.strike for hit in hits if begin_seconds <= hit.at_seconds < end_seconds]
    killed = {strike.kind for strike in during if not strike.is_pause}
    missing = [kind.value for kind in Kind if kind not in killed]
    return missing if any(strike.is_pause for strike in during) else [*missing, "a pause"]
