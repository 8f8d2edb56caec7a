"""The runtime of embedding models: `pile` (which inputs are computed together) and `runtime` (requests and replies),
both without torch; `encoder` (the model) and `loading`.
"""
