"""How the C library handles the memory that a step gives back. Knows no torch.

glibc returns large blocks to the system at once and asks for them again in the next step, and the system clears every
page anew: some 1,300 page faults a step of a small model, a twentieth of its time. What is kept is bounded by the
largest step.
"""

import ctypes
import logging
from functools import cache

logger = logging.getLogger(__name__)

# Of malloc.h. The first is the largest that glibc accepts; blocks beyond it go on being returned at once.
_OPTIONS = {"M_MMAP_THRESHOLD": (-3, 32 << 20), "M_TRIM_THRESHOLD": (-1, 1 << 30), "M_TOP_PAD": (-2, 16 << 20)}


@cache
def keep_freed_memory() -> bool:
    """For the whole process. False where the C library has no such options (musl, macOS); nothing changes then."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    refused = [name for name, (number, value) in _OPTIONS.items() if not mallopt(number, value)]
    if refused:
        logger.warning("malloc refused %s, so a step may cost more page faults", ", ".join(refused))
    return not refused
