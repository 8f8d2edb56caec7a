"""Streams as their users read them: the official client against a real `millrace up`, with a model that computes
nothing but takes its time, and a tiny real one; readers that leave or come back, and an engine that dies."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.engine_models import save_tiny_model
from tests.null_answers import expected_answer
from tests.polling import until
from tests.running import Millrace, running_millrace

QUICK, SLOW, HELD, TINY = "null", "slow", "held", "tiny"
NUM_READERS = 64


@pytest.fixture(scope="module")
def millrace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Millrace]:
    directory = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with (directory / "chat_template.jinja").open("a") as template:
        template.write("{% if tools %}<tool_call>{% endif %}")
    models = f"{QUICK}=null:,{SLOW}=null:4,{HELD}=null:3600,{TINY}={directory}"
    with running_millrace(models=models, reconcile_seconds=1.0) as started:
        yield started


def question(text: str, model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def answer_to(text: str) -> str:
    return expected_answer({"body": question(text, QUICK)})


def state_of(millrace: Millrace, answer_id: str) -> object:
    job = answer_id.removeprefix("chatcmpl-").partition("-")[0]
    with millrace.database() as connection:
        row = connection.execute("SELECT state FROM jobs WHERE public_id = %s", [job]).fetchone()
    return row and row[0]


def newest_state(millrace: Millrace) -> object:
    with millrace.database() as connection:
        row = connection.execute("SELECT state FROM jobs ORDER BY id DESC LIMIT 1").fetchone()
    return row and row[0]


def test_the_official_client_reads_a_stream(millrace: Millrace) -> None:
    # When
    stream = millrace.client.chat.completions.create(
        model=SLOW,
        messages=[{"role": "user", "content": "a"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    # Then
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == answer_to("a")
    assert sum(bool(choice.delta.content) for choice in choices) > 1, "it came in pieces"
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (1, 1)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_real_model_streams_what_it_answers(millrace: Millrace) -> None:
    # Given
    wanted = {"model": TINY, "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    chat = {**wanted, "messages": [{"role": "user", "content": "feeds the wheel"}], "n": 2, "logprobs": True}
    text = {**wanted, "prompt": "feeds the wheel", "logprobs": 1}
    # When
    whole_chat = millrace.client.chat.completions.create(**chat, top_logprobs=1)  # type: ignore[call-overload]
    chat_chunks = list(millrace.client.chat.completions.create(**chat, top_logprobs=1, stream=True))  # type: ignore[call-overload]
    whole_text = millrace.client.completions.create(**text)  # type: ignore[call-overload]
    text_chunks = list(millrace.client.completions.create(**text, stream=True))  # type: ignore[call-overload]
    # Then
    for whole in whole_chat.choices:
        parts = [one for chunk in chat_chunks for one in chunk.choices if one.index == whole.index]
        assert "".join(part.delta.content or "" for part in parts) == whole.message.content
        assert whole.logprobs is not None
        told = [token for part in parts if part.logprobs for token in part.logprobs.content or ()]
        assert [token.token for token in told] == [token.token for token in whole.logprobs.content or ()]
        assert parts[-1].finish_reason == whole.finish_reason == "length"
    assert "".join(chunk.choices[0].text for chunk in text_chunks) == whole_text.choices[0].text
    tokens = [token for chunk in text_chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.tokens]
    assert tokens == whole_text.choices[0].logprobs.tokens


def test_a_prompt_that_is_too_long_is_refused_with_its_count_before_anything_is_queued(millrace: Millrace) -> None:
    with pytest.raises(openai.BadRequestError, match=r"the prompt has 601 tokens, but .* may have 512") as refused:
        millrace.client.completions.create(model=TINY, prompt=[5] * 601, stream=True)
    assert refused.value.code == "context_length_exceeded"


def test_several_prompts_are_answered_as_choices_in_a_row(millrace: Millrace) -> None:
    # Given
    wanted = {"model": TINY, "max_tokens": 6, "temperature": 0, "n": 2, "extra_body": {"ignore_eos": True}}
    prompts = ["feeds the wheel", "turns the stone"]
    # When
    alone = [millrace.client.completions.create(prompt=prompt, **wanted) for prompt in prompts]  # type: ignore[call-overload]
    together = millrace.client.completions.create(prompt=prompts, **wanted)  # type: ignore[call-overload]
    chunks = list(millrace.client.completions.create(prompt=prompts, stream=True, **wanted))  # type: ignore[call-overload]
    # Then
    texts = [choice.text for answer in alone for choice in answer.choices]
    assert [(choice.index, choice.text) for choice in together.choices] == list(enumerate(texts))
    assert together.usage.completion_tokens == 24
    parts = [choice for chunk in chunks for choice in chunk.choices]
    assert ["".join(part.text for part in parts if part.index == index) for index in range(4)] == texts


def test_a_tool_call_that_has_to_come_comes_whole_and_in_pieces(millrace: Millrace) -> None:
    # Given
    parameters = {
        "type": "object",
        "properties": {"at": {"enum": ["the wheel", "the mill"]}},
        "required": ["at"],
        "additionalProperties": False,
    }
    call = {
        "model": TINY,
        "messages": [{"role": "user", "content": "where?"}],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": parameters}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "temperature": 0,
        "max_tokens": 200,
    }
    # When
    whole = millrace.client.chat.completions.create(**call).choices[0]  # type: ignore[call-overload]
    chunks = list(millrace.client.chat.completions.create(**call, stream=True))  # type: ignore[call-overload]
    # Then
    (made,) = whole.message.tool_calls
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    assert made.function.name == "look"
    assert json.loads(made.function.arguments)["at"] in ("the wheel", "the mill")
    told = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert [one.function.name for one in told if one.id] == ["look"]
    assert "".join(one.function.arguments for one in told) == made.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_64_clients_read_at_once(millrace: Millrace) -> None:
    # When
    async def read(client: AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model=QUICK, messages=[{"role": "user", "content": f"q{number}"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{millrace.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(read(client, number) for number in range(NUM_READERS)))

    # Then
    assert asyncio.run(read_all()) == [answer_to(f"q{number}") for number in range(NUM_READERS)]


def num_running(millrace: Millrace, model: str) -> object:
    running = "SELECT count(*) FROM chunks WHERE model = %s AND state = 'running'"
    with millrace.database() as connection:
        row = connection.execute(running, [model]).fetchone()
    return row and row[0]


def test_64_long_streams_run_at_once_and_end_when_their_readers_leave(millrace: Millrace) -> None:
    # Given
    async def read(client: httpx.AsyncClient, number: int) -> None:
        body = {**question(f"held {number}", HELD), "stream": True}
        async with client.stream("POST", f"{millrace.url}/v1/chat/completions", json=body) as response:
            await response.aread()

    async def read_all() -> None:
        limits = httpx.Limits(max_connections=NUM_READERS)
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:
            readers = [asyncio.ensure_future(read(client, number)) for number in range(NUM_READERS)]
            # When / Then
            await asyncio.to_thread(until, lambda: num_running(millrace, HELD) == NUM_READERS)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    asyncio.run(read_all())
    # Then
    until(lambda: num_running(millrace, HELD) == 0)


@pytest.mark.parametrize("words_read", [0, 1])
def test_a_client_that_leaves_cancels_its_request_also_before_the_first_word(
    millrace: Millrace, words_read: int
) -> None:
    # Given a request that would take 4 seconds to answer
    body = json.dumps({**question(f"leaving {words_read}", SLOW), "stream": True}).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    head = "\r\n".join((*lines, f"Content-Length: {len(body)}"))
    with socket.create_connection(("127.0.0.1", millrace.settings.port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        if words_read:
            assert b"200 OK" in connection.recv(4096)
        else:
            until(lambda: newest_state(millrace) == "in_progress")
    # Then
    until(lambda: newest_state(millrace) in ("cancelling", "cancelled"))
    until(lambda: newest_state(millrace) == "cancelled")


def read_events(response: httpx.Response, *, until_text: int = 1_000) -> tuple[str, str, str]:
    """Id of the answer, text, and id of the last event; stops reading after so many characters."""
    answer_id, text, event_id = "", "", ""
    for line in response.iter_lines():
        if line.startswith("id: "):
            event_id = line.removeprefix("id: ")
        elif line.startswith("data: {"):
            data = json.loads(line.removeprefix("data: "))
            answer_id = data["id"]
            text += data["choices"][0]["delta"].get("content") or ""
        if len(text) >= until_text or line == "data: [DONE]":
            break
    return answer_id, text, event_id


def test_a_client_that_comes_back_reads_on_where_it_was(millrace: Millrace) -> None:
    # Given a client that asks to be waited for, and loses its connection in the middle
    url = f"{millrace.url}/v1/chat/completions"
    body = {**question("come back", SLOW), "stream": True, "stream_options": {"resume_seconds": 60}}
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        answer_id, begun, event_id = read_events(response, until_text=4)
    # When
    with httpx.stream("GET", f"{url}/{answer_id}/events", headers={"Last-Event-ID": event_id}, timeout=60) as response:
        _, rest, _ = read_events(response)
    # Then
    assert begun + rest == answer_to("come back")
    assert len(begun) == 4
    # And whoever has nothing gets all of it, though it is over
    with httpx.stream("GET", f"{url}/{answer_id}/events", timeout=60) as response:
        assert read_events(response)[1] == answer_to("come back")
    assert httpx.get(f"{url}/chatcmpl-req_none-0/events").status_code == 404


def test_an_engine_that_dies_in_the_middle_ends_the_stream_with_an_error(millrace: Millrace) -> None:
    # Given
    stream = millrace.client.chat.completions.create(
        model=SLOW, messages=[{"role": "user", "content": "to be cut off"}], stream=True
    )
    first = next(chunk for chunk in stream if chunk.choices[0].delta.content)
    # When
    millrace.process("engine.server").send_signal(signal.SIGKILL)
    # Then
    with pytest.raises(openai.APIError, match="stopped in the middle"):
        list(stream)
    until(lambda: state_of(millrace, first.id) == "cancelled")


def test_an_engine_that_dies_before_the_first_word_is_never_seen(millrace: Millrace) -> None:
    # Given
    texts: list[str] = []

    async def ask() -> None:
        async with AsyncOpenAI(base_url=f"{millrace.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            stream = await client.chat.completions.create(
                model=SLOW, messages=[{"role": "user", "content": "unseen"}], stream=True
            )
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

    async def kill() -> None:
        await asyncio.to_thread(until, lambda: is_claimed(millrace))
        millrace.process("engine.server").send_signal(signal.SIGKILL)

    async def both() -> None:
        await asyncio.gather(ask(), kill())

    # When
    asyncio.run(both())
    # Then
    assert texts == [answer_to("unseen")]


def is_claimed(millrace: Millrace) -> bool:
    with millrace.database() as connection:
        row = connection.execute("SELECT state FROM chunks ORDER BY id DESC LIMIT 1").fetchone()
    return row is not None and row[0] == "running" and newest_state(millrace) == "in_progress"
