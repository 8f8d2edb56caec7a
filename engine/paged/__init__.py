"""Keys and values in pages: the form for GPUs.

A page holds the K/V of `PAGE_SIZE` tokens. Which pages are a sequence's own is `Sequence.pages`, and `engine.kv.pages`
decides it; nothing here moves K/V about. Read it in this order: `storage` (the pages), `rows` (what a running sequence
leaves on the device between steps), `batch` (what one forward pass tells its attention), `attention` (the function that
the model calls), `reference` (attention in plain torch, for CPUs and as the oracle), `kernels` and `triton_attention`
(the same on a GPU), `graphs` (decode steps that are replayed), `sampling`, `readback`, `sizing` and, on top, `runner`.

Everything here is also right on a CPU, where tests run it: the padded batches and static buffers of the GPU's decode
steps included, only without graphs and streams.
"""
