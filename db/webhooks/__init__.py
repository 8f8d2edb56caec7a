"""Webhooks as rows: the endpoints of tenants, and an outbox of messages to them."""
