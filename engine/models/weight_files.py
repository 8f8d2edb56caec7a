"""How many bytes the weights of a model take that is not loaded yet, judged by its files."""

from pathlib import Path

_PATTERNS = ("*.safetensors", "*.bin")  # the first that is there; some directories hold the same weights in both


def stored_bytes(source: str) -> int:
    """Of a directory. 0 for what is no directory: a name on the Hub may be downloaded or not, and nobody asks it."""
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return 0
    for pattern in _PATTERNS:
        if num_bytes := sum(file.stat().st_size for file in directory.glob(pattern)):
            return num_bytes
    return 0
