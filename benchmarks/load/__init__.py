"""Waiting people as load: requests over HTTP, one at a time and many at once, streamed, and beside bulk work."""
