"""Batches for the null model and what it answers: a hash of the prompt, so a wrong, lost or doubled answer shows."""

import hashlib
import json
from collections.abc import Sequence

import msgspec


def chat_rows(count: int, model: str, prompt: str = "question") -> list[dict[str, object]]:
    return [
        {
            "custom_id": f"row-{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": f"{prompt} {index}"}]},
        }
        for index in range(count)
    ]


def expected_answer(row: dict[str, object]) -> str:
    """16 hexadecimal digits of the SHA-256 of the prompt as canonical JSON."""
    body = row["body"]
    assert isinstance(body, dict)
    return answer_to(body["messages"] if "messages" in body else body["prompt"])


def answer_to(prompt: object) -> str:
    canonical = msgspec.json.Encoder(order="deterministic").encode(prompt)
    return hashlib.sha256(canonical).hexdigest()[:16]


def encode(rows: Sequence[object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
