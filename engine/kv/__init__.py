"""Where keys and values lie: of running sequences, and of known prefixes that others may take over.

`pool` is what the scheduler asks for. On rows: `slots` and `prefix` keep the books, `grid` and `store` the tensors. On
pages: `pages` keeps the books, `engine.paged` the tensors. The books know no torch.
"""
