"""How fast the engine is on one GPU: `python -m benchmarks.gpu`. Runs on a bare machine: it needs torch, transformers,
Triton, msgspec and pyzmq, and of this repository `core` and `engine` alone."""
