"""Continuous batching over a plain Hugging Face decoder.

Read it in this order: `sequence` (one request), `slots` and `scheduler` (who runs), `text` and `limits` (what may be
shown, what is refused): all of these without torch. Then `kv`, `packing` and `attention` (one forward pass for all),
`sampling`, `runner` (the model), `generator` (the step). `loading` puts them together, with `support` and `probe` (what
can be served), `memory` (how much fits) and `linear` (weights as a CPU likes them).
"""
