"""`/v1/responses`: jobs of one request, seen as OpenAI's Responses API shows them."""
