"""Whether an engine understands what a request asks for, where it is of another release or no engine of ours; and
whether a request can be said at all.

The struct of a message grows by fields with defaults, and whoever does not know a field skips it: a request would be
answered without a word as if it had not asked.
"""

from collections.abc import Callable, Sequence

import msgspec

from core.protocol import FIELDS, ClientFrame, Embed, Failed, Generate, Hello, Sampling, encode

_NOT_ENCODABLE = (OverflowError, RecursionError, TypeError, ValueError)


def _named(kind: type[Generate | Embed | Sampling], fields: str) -> frozenset[str]:
    return frozenset(f"{kind.__name__}.{field}" for field in fields.split())


# Of engines that do not say: what all read, and what those read that take acknowledgements. These lists do not grow:
# newer engines say. Those that skip `prefix_scope` reuse no prefix.
_ALWAYS = (
    _named(Generate, "id model sampling messages text token_ids priority stream prefix_scope")
    | _named(Embed, "id model texts token_ids dimensions priority timeout_seconds")
    | _named(Sampling, "max_tokens temperature top_p top_k seed stop ignore_eos")
)
_WITH_ACKS = (
    _ALWAYS
    | _named(Generate, "num_answers timeout_seconds")
    | _named(Sampling, "stop_token_ids min_tokens min_p repetition_penalty presence_penalty frequency_penalty")
    | _named(Sampling, "logit_bias num_logprobs json_schema")
)


def missing_fields(request: Generate | Embed, hello: Hello) -> list[str]:
    """What the request asks for and this engine would skip."""
    if hello.understood == FIELDS:
        return []
    understood = frozenset(hello.understood) or (_WITH_ACKS if hello.takes_acks else _ALWAYS)
    wanted = _given_fields(request)
    if isinstance(request, Generate):
        wanted += _given_fields(request.sampling)
    return [field for field in wanted if field not in understood]


def _given_fields(part: Generate | Embed | Sampling) -> list[str]:
    """Those that are not as they are by default."""
    kind = type(part)
    return [f"{kind.__name__}.{name}" for name in msgspec.to_builtins(part) if name in kind.__struct_fields__]


def encodable(requests: Sequence[Generate | Embed], refuse: Callable[[Failed], None]) -> Sequence[Generate | Embed]:
    """JSON knows values that MessagePack does not, such as integers beyond 64 bits; they must not reach the socket.
    Tried together first: one by one costs three times as much."""
    try:
        encode(ClientFrame(list(requests)))
    except _NOT_ENCODABLE:
        return [request for request in requests if _is_encodable(request, refuse)]
    return requests


def _is_encodable(request: Generate | Embed, refuse: Callable[[Failed], None]) -> bool:
    try:
        encode(ClientFrame([request]))
    except _NOT_ENCODABLE as error:
        refuse(Failed(request.id, "invalid_request", f"expected values of at most 64 bits and bounded depth: {error}"))
        return False
    return True
