"""The front door over HTTP: OpenAI's files, batches, models and completions, and native routes. Knows rows and
messages; reaches engines only through them."""
