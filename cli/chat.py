"""`millrace chat "…"`: asks one question and prints the answer while it is made."""

from cli.client import RequestFailed, Server, connect


def chat(server: Server, question: str, model: str | None, max_tokens: int, temperature: float) -> None:
    """Raises RequestFailed when no model is served."""
    with connect(server) as client:
        if model is None:
            served = client.models.list().data
            if not served:
                raise RequestFailed("no model is served: start a node, or `millrace up`")
            model = served[0].id
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=temperature,
            stream=True,
        )
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
        print()
