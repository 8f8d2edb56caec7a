"""`millrace artifacts`: the models that jobs made."""
