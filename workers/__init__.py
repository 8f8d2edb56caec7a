"""One node: its agent, the processes it starts and watches, the client of its engines, the running of chunks."""
