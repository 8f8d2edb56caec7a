"""Webhooks without I/O: which events there are, how a message is signed, where one may be sent, when it is tried
again."""
