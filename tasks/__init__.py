"""Celery: the app, its queues and beat table, and one thin module per kind of work. Knows rows and messages; what needs
an engine is behind a Protocol in `tasks.services`."""
