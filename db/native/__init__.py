"""What only Millrace's own routes ask of the rows: jobs of all kinds with their lists and removal, and queues and nodes
as people look at them."""
