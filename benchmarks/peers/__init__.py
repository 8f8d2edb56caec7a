"""Other engines on the same work: each in a process of its own, some in an environment of their own."""
