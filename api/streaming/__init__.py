"""Answers while they grow: following the relay and the database, and telling a client in server-sent events."""
