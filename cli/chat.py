"""`millrace chat "…"`: asks one question, which is a job of one row."""

from rich.console import Console

from cli.client import RequestFailed, Server, connect


def chat(server: Server, question: str, model: str | None, max_tokens: int, temperature: float) -> None:
    """Raises RequestFailed when no model is served."""
    with connect(server) as client:
        if model is None:
            served = client.models.list().data
            if not served:
                raise RequestFailed("no model is served: start a node, or `millrace up`")
            model = served[0].id
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=temperature,
        )
    Console().print(answer.choices[0].message.content or "", markup=False, highlight=False)
