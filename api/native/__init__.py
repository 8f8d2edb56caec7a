"""Millrace's own routes under `/api/v1`: jobs with what OpenAI's objects have no place for."""
