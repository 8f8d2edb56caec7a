"""The compiled kernels as functions that take addresses and numbers. Knows no torch.

A call costs about two microseconds and gives up the interpreter's lock. Nobody checks an address here.
"""

import ctypes
from pathlib import Path

_ADDRESS = ctypes.c_void_p
_NUMBER = ctypes.c_int64
_REAL = ctypes.c_double

# Letters of the C functions' parameters, in order: an address, a whole number, a real number.
_SIGNATURES = {
    "millrace_rms_norm": "aaannnrnnn",
    "millrace_gated": "aaannnnnnn",
    "millrace_rotate": "aaannnnnnnn",
    "millrace_multiply": "annnannn",
    "millrace_gated_mlp": "annnannn",
    "millrace_pack": "aannnn",
    "millrace_multiplies_well": "n",
    "millrace_write": "aannnnannannann",
    "millrace_attend": "aannnnnannnaannnrrn",
    "millrace_decode": "aaan",
    "millrace_decoder_bytes": "ann",
}
_TYPES = {"a": _ADDRESS, "n": _NUMBER, "r": _REAL}


class NativeLibrary:
    """Raises OSError where the file is no library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, letters in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [_TYPES[letter] for letter in letters]
            function.restype = ctypes.c_int
        self.rms_norm = library.millrace_rms_norm
        self.gated = library.millrace_gated
        self.rotate = library.millrace_rotate
        self.multiply = library.millrace_multiply
        self.gated_mlp = library.millrace_gated_mlp
        self.pack = library.millrace_pack
        self.multiplies_well = library.millrace_multiplies_well
        self.write = library.millrace_write
        self.attend = library.millrace_attend
        self.decode = library.millrace_decode
        self.decoder_bytes = library.millrace_decoder_bytes
        self.decoder_bytes.restype = _NUMBER
        self._use_pool = library.millrace_use_pool
        self._use_pool.argtypes = [_ADDRESS]
        self._use_pool.restype = None

    def share_threads(self, owner: Path) -> bool:
        """Take the OpenMP threads of the loaded library `owner`. False where it has none: the caller works alone."""
        try:
            entry = ctypes.CDLL(str(owner)).GOMP_parallel
        except (OSError, AttributeError):
            return False
        self._use_pool(ctypes.cast(entry, _ADDRESS))
        return True
