"""The clients that programs use, unchanged, against a real `millrace up`: OpenAI's own, sync and async, LangChain's and
LiteLLM's. The null model answers with a hash of the prompt and embeds as one, so a wrong answer shows."""

import asyncio
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AsyncOpenAI, OpenAI
from pydantic import SecretStr

from core.protocol import Generate
from engine.null import answer_text, embedding
from tests.polling import until
from tests.running import running_millrace

# LiteLLM would fetch its table of prices over the network when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

MODEL = "null"
HELLO = "hello"
KEY = "unused"


@dataclass(frozen=True)
class Clients:
    base_url: str
    official: OpenAI


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with running_millrace(with_flower=True, models=f"{MODEL}=null:") as started:
        yield Clients(f"{started.url}/v1", started.client)


def expected(role: str = "user") -> str:
    return answer_text(Generate("id", MODEL, messages=[{"role": role, "content": HELLO}]))


def numbers(text: str) -> list[float]:
    return list(struct.unpack("<8f", embedding(text)))


def test_openai_answers_embeds_and_responds(clients: Clients) -> None:
    # When
    chat = clients.official.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": HELLO}])
    embedded = clients.official.embeddings.create(model=MODEL, input=[HELLO, "a mill"])
    response = clients.official.responses.create(model=MODEL, input=HELLO)
    # Then
    assert chat.choices[0].message.content == response.output_text == expected()
    assert [item.embedding for item in embedded.data] == [numbers(HELLO), numbers("a mill")]


def test_openai_answers_many_at_once_without_threads(clients: Clients) -> None:
    # Given
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=clients.base_url, api_key=KEY, max_retries=0) as client:
            chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": HELLO}])
            answer, response, embedded = await asyncio.gather(
                chat,
                client.responses.create(model=MODEL, input=HELLO),
                client.embeddings.create(model=MODEL, input=HELLO),
            )
            stream = await client.responses.create(model=MODEL, input=HELLO, stream=True)
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            assert embedded.data[0].embedding == numbers(HELLO)
            return [answer.choices[0].message.content or "", response.output_text, "".join(deltas)]

    # When / Then
    assert asyncio.run(ask()) == [expected()] * 3


def test_openai_leaves_work_in_the_background(clients: Clients) -> None:
    # Given
    made = [clients.official.responses.create(model=MODEL, input=HELLO, background=True) for _ in range(5)]

    # When
    def statuses() -> set[str | None]:
        return {clients.official.responses.retrieve(one.id).status for one in made}

    until(lambda: statuses() == {"completed"})
    # Then
    assert clients.official.responses.retrieve(made[0].id).output_text == expected()


def test_langchain_answers_streams_and_embeds(clients: Clients) -> None:
    # Given
    chat = ChatOpenAI(model=MODEL, base_url=clients.base_url, api_key=SecretStr(KEY), max_retries=0)
    responding = ChatOpenAI(
        model=MODEL, base_url=clients.base_url, api_key=SecretStr(KEY), max_retries=0, use_responses_api=True
    )
    embeddings = OpenAIEmbeddings(
        model=MODEL,
        base_url=clients.base_url,
        api_key=SecretStr(KEY),
        check_embedding_ctx_length=False,  # else it downloads the tokenizer of OpenAI's models
    )
    # When
    answer = chat.invoke(HELLO)
    pieces = [piece.content for piece in chat.stream(HELLO)]
    responded = responding.invoke(HELLO)
    # Then
    assert answer.content == "".join(map(str, pieces)) == responded.text == expected()
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 1
    assert embeddings.embed_documents([HELLO, "a mill"]) == [numbers(HELLO), numbers("a mill")]


def test_langchain_answers_a_batch_of_questions(clients: Clients) -> None:
    chat = ChatOpenAI(model=MODEL, base_url=clients.base_url, api_key=SecretStr(KEY), max_retries=0)
    assert {answer.content for answer in chat.batch([HELLO] * 8)} == {expected()}


# A class of its own that pydantic finds odd.
@pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning")
def test_litellm_answers_streams_and_embeds(clients: Clients) -> None:
    # Given
    model = f"openai/{MODEL}"
    place: dict[str, Any] = {"api_base": clients.base_url, "api_key": KEY, "num_retries": 0}
    messages = [{"role": "user", "content": HELLO}]
    # When
    answer = litellm.completion(model=model, messages=messages, **place)
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in litellm.completion(model, messages, stream=True, **place)
    ]
    embedded = litellm.embedding(model=model, input=[HELLO], **place)
    # Then
    assert answer.choices[0].message.content == "".join(pieces) == expected()
    assert embedded.data[0]["embedding"] == numbers(HELLO)
