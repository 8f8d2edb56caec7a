"""How an answer's next token is chosen: `limits` (what is refused, without torch) and `sampler` (logits to tokens)."""
