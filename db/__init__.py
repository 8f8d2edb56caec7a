"""The rows that are the truth, and the only SQL of the project. Knows PostgreSQL; knows no Celery, HTTP or models."""
