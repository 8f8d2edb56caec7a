"""Tells Python's garbage collector what kind of process this is."""

import gc

_ALLOCATIONS = 10_000


def settle() -> None:
    """Once everything is imported and built, at the start of the work: what is there stays to the end, so nobody looks
    through it again; and rows come by the thousand, so the collector looks after thousands, not hundreds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 20, 20)
