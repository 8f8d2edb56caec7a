"""The one allocator that all models of the process share: it must not give memory back while a CUDA graph is captured.

Captures are made on the thread that loads models, while another one steps and unloads. One lock keeps them apart. A
capture that failed leaves the allocator in a state in which giving back is an error for good; then nobody does.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceAllocator:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_broken = False

    @property
    def is_broken(self) -> bool:
        """Whether a capture has failed: memory is not given back any more, and there can be no other capture."""
        return self._is_broken

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Around a capture, of one graph rather than of many: whoever unloads a model waits for it."""
        with self._lock:
            try:
                yield
            except BaseException:
                self._is_broken = True
                raise

    def release(self) -> None:
        """Give unused memory back to the device. Does nothing on a machine without one."""
        with self._lock:
            if not self._is_broken:
                self._give_back()

    def _give_back(self) -> None:
        torch.cuda.empty_cache()


allocator = DeviceAllocator()
"""torch has one per process, and so do we."""
