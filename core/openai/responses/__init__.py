"""OpenAI's Responses API in terms of conversations: bodies in, response objects and events out. No HTTP, no rows."""
