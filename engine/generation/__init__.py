"""Continuous batching over a plain Hugging Face decoder.

Read it in this order: `sequence` (one request), `slots` and `scheduler` (who runs, torch-free), `text` (what may be
shown), `kv`, `packing` and `attention` (one forward pass for all), `sampling`, `runner` (the model), `generator` (the
step).
"""
