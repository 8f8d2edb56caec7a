"""How an answer's next token is chosen.

`sampler` goes from logits to tokens by way of `greedy`, `adjust`, `restrict` and `draw`, which know torch. The rest
does not: `limits` (what is refused), `controls` (what a sequence wants done to its logits), `token_counts`, `grammar`
(JSON schemas), `logprobs` and `uniform` (random numbers).
"""
