"""The `millrace` command: it composes the parts of a node, starts them, and talks to a running one."""
