"""Continuous batching over a plain Hugging Face decoder.

Read it in this order: `sequence` (one request), `scheduler` (who runs), `text` and `answers` (what a client gets): all
of these without torch, as is the bookkeeping in `engine.kv`. Then `packing` and `grid_attention` (one forward pass for
all), `execution` (what a runner is), `runner` (the model), `flights` (steps under way) and `generator` (the step).
`engine.models.loading` puts them together.
"""
