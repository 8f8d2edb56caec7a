"""How many tokens a prompt has, before anything is queued. Blocking: call it in a thread."""

from api.codecs import KnownModel
from api.context import Context
from core.openai.completion import CompletionRequest
from core.prompts import answer_room


def count_prompt_tokens(context: Context, model: str, parsed: CompletionRequest) -> int | None:
    """None where this machine cannot read the model: the engine counts then.

    Raises ContextLengthExceeded where prompt and answer cannot fit, InvalidRequest where the chat template refuses."""
    known = context.codecs.find(model)
    if known is None:
        return None if parsed.token_ids is None else len(parsed.token_ids)
    num_tokens = _count(known, parsed)
    answer_room(num_tokens, known.context_tokens)
    return num_tokens


def _count(known: KnownModel, parsed: CompletionRequest) -> int:
    if parsed.messages is not None:
        return len(known.codec.encode_chat(parsed.messages, known.context_tokens, parsed.tool_use.tools))
    if parsed.text is not None:
        return len(known.codec.encode_text(parsed.text, known.context_tokens))
    return len(parsed.token_ids or ())
