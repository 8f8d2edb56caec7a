"""What OpenAI's clients send and expect: request bodies, answer bodies, batch files. No HTTP."""
