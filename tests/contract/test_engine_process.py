"""The real engine process over ZMQ: one suite for the null model and a real one, and what only one of them shows."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from core.protocol import Begun, Cancel, Failed, Finished, Generate, Load, Ping, Sampling, Unload
from tests.engine_models import save_tiny_model
from tests.engine_process import DEADLINE_SECONDS, EngineClient, engine_client, engine_process
from tests.polling import until

SHORT = Sampling(temperature=0, max_tokens=8)
ENDLESS = Sampling(temperature=0, ignore_eos=True)  # to the end of the context


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def endless_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context takes minutes to fill."""
    return save_tiny_model(tmp_path_factory.mktemp("endless"), max_position_embeddings=1_000_000)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, endless_directory: Path) -> Iterator[str]:
    """One process for all tests that leave it as it was."""
    endpoint = f"ipc://{tmp_path_factory.mktemp('engine')}/socket"
    models = [f"tiny={model_directory}", f"endless={endless_directory}", "null=null:", "slow=null:3600"]
    models += ["gone=/no/such/directory"]
    arguments = [argument for model in models for argument in ("--model", model)]
    options = ["--preload", "tiny", "--preload", "null", "--slots", "4", "--threads", "1", "--dtype", "float32"]
    options += ["--max-context-tokens", "1000000"]
    with engine_process(endpoint, *arguments, *options):
        yield endpoint


@pytest.fixture
def client(endpoint: str) -> Iterator[EngineClient]:
    with engine_client(endpoint) as client:
        client.wait_until_ready("tiny")
        client.wait_until_ready("null")
        yield client


both = pytest.mark.parametrize("model", ["tiny", "null"])


@both
def test_every_form_of_prompt_gets_one_answer_with_usage_and_timing(client: EngineClient, model: str) -> None:
    # When a text, a chat and token ids are asked
    answers = client.ask(
        Generate("text", model, SHORT, text="the mill race"),
        Generate("chat", model, SHORT, messages=[{"role": "user", "content": "the wheel turns"}]),
        Generate("ids", model, SHORT, token_ids=[5, 6, 7]),
    )
    # Then each is answered once
    for answer in answers:
        assert isinstance(answer, Finished)
        assert answer.usage.prompt_tokens >= 3
        assert 1 <= answer.usage.completion_tokens <= 8
        assert 0 <= answer.timing.first_token_seconds <= answer.timing.total_seconds


@both
def test_the_same_question_gets_the_same_answer_and_streams_add_up(client: EngineClient, model: str) -> None:
    # When a question is asked twice, once as a stream
    plain, streamed = client.ask(
        Generate("plain", model, SHORT, text="feeds the wheel"),
        Generate("streamed", model, SHORT, text="feeds the wheel", stream=True),
    )
    # Then the deltas are the answer
    assert isinstance(plain, Finished)
    assert isinstance(streamed, Finished)
    assert plain.text == streamed.text == "".join(delta.text for delta in client.deltas("streamed"))
    assert client.deltas("plain") == []


@both
def test_more_requests_than_slots_are_all_answered_and_more_than_credits_are_refused(
    client: EngineClient, model: str
) -> None:
    # Given four slots and so eight credits
    assert client.hello().credits == 8
    # When twelve are sent in one frame
    answers = client.ask(*(Generate(str(number), model, SHORT, text=f"number {number}") for number in range(12)))
    # Then eight are answered, and the rest may come again
    assert [type(answer) for answer in answers] == [Finished] * 8 + [Failed] * 4
    assert [(answer.code, answer.is_retryable) for answer in answers[8:] if isinstance(answer, Failed)] == [
        ("overloaded", True)
    ] * 4


@both
def test_wrong_requests_fail_alone_with_the_right_code(client: EngineClient, model: str) -> None:
    # When wrong requests travel among right ones
    requests = {
        "good": Generate("good", model, SHORT, text="the stone"),
        "no prompt": Generate("no prompt", model, SHORT),
        "empty": Generate("empty", model, SHORT, text=""),
        "no messages": Generate("no messages", model, SHORT, messages=[]),
        "two prompts": Generate("two prompts", model, SHORT, text="x", token_ids=[1]),
        "temperature": Generate("temperature", model, Sampling(temperature=-1), text="x"),
        "top_p": Generate("top_p", model, Sampling(top_p=float("nan")), text="x"),
        "unknown": Generate("unknown", "nobody", SHORT, text="x"),
        "good too": Generate("good too", model, SHORT, text="the grain"),
    }
    answers = dict(zip(requests, client.ask(*requests.values()), strict=True))
    # Then they fail with a code and a sentence, and nothing else happens
    codes = {name: answer.code for name, answer in answers.items() if isinstance(answer, Failed)}
    assert codes == dict.fromkeys(list(requests)[1:7], "invalid_request") | {"unknown": "model_not_found"}
    assert isinstance(answers["good"], Finished)
    assert isinstance(answers["good too"], Finished)


@pytest.mark.parametrize("model", ["endless", "slow"])
def test_cancel_ends_a_request_once_and_spares_the_others(client: EngineClient, model: str) -> None:
    # Given a request that takes long, twice the same id, and cancels for ids that nobody has
    client.send(Generate("endless", model, ENDLESS, text="x"), Generate("endless", model, ENDLESS, text="x"))
    duplicate = client.outcome("endless")
    client.received.clear()
    client.send(Cancel(["endless", "unknown"]), Generate("next", "null", text="y"))
    # Then it is cancelled once, the doubled id was refused, the unknown id is called cancelled, and the engine goes on
    ended, unknown = client.outcome("endless"), client.outcome("unknown")
    assert isinstance(duplicate, Failed)
    assert (duplicate.code, "not in flight" in duplicate.message) == ("invalid_request", True)
    assert isinstance(ended, Failed)
    assert (ended.code, ended.is_retryable) == ("cancelled", False)
    assert isinstance(unknown, Failed)
    assert unknown.code == "cancelled"
    assert isinstance(client.outcome("next"), Finished)
    assert sum(getattr(message, "id", "") == "endless" for message in client.received) == 1
    assert client.hello().stats.num_running == 0


def test_the_null_model_answers_with_the_digest_of_the_prompt(client: EngineClient) -> None:
    (answer,) = client.ask(Generate("x", "null", text="how are you"))
    assert isinstance(answer, Finished)
    assert answer.text == hashlib.sha256(json.dumps("how are you").encode()).hexdigest()[:16]


def test_frames_that_nobody_can_read_are_dropped_and_the_rest_is_served(client: EngineClient) -> None:
    # When garbage of several kinds comes
    client.send_raw(b"")
    client.send_raw(b"\xc1garbage")
    client.send_raw(b"two", b"parts")
    client.send_raw(msgspec.msgpack.encode({"messages": [{"type": "explode"}]}))
    client.send_raw(msgspec.msgpack.encode({"messages": [{"type": "generate", "id": 5, "model": "null"}]}))
    client.send_raw(msgspec.msgpack.encode([1, 2, 3]))
    client.send_raw(b"\x81\xa8messages\xdd\xff\xff\xff\xff")
    # Then the next request is answered
    (answer,) = client.ask(Generate("after", "null", text="x"))
    assert isinstance(answer, Finished)


def test_a_prompt_longer_than_the_context_fails_and_an_answer_is_clipped_to_it(client: EngineClient) -> None:
    # When one prompt is too long and one leaves room for two tokens
    long, clipped = client.ask(
        Generate("long", "tiny", SHORT, token_ids=[5] * 512),
        Generate("clipped", "tiny", Sampling(max_tokens=50, temperature=0, ignore_eos=True), token_ids=[5] * 510),
    )
    # Then the first fails by its code, and the second ends at the context
    assert isinstance(long, Failed)
    assert long.code == "context_length_exceeded"
    assert isinstance(clipped, Finished)
    assert (clipped.finish_reason, clipped.usage.completion_tokens) == ("length", 2)


def test_a_model_that_cannot_be_loaded_fails_its_requests_and_says_why_in_hello(client: EngineClient) -> None:
    # When a model without a directory is asked, and asked again
    first, second = client.ask(Generate("first", "gone", text="x"), Generate("second", "gone", text="x"))
    (third,) = client.ask(Generate("third", "gone", text="x"))
    # Then all of them fail with the reason, the others are served, and `Load` may try again
    for failure in (first, second, third):
        assert isinstance(failure, Failed)
        assert failure.code == "model_not_loaded"
        assert "expected a model directory at /no/such/directory" in failure.message
    status = {model.name: model for model in client.hello().models}["gone"]
    assert (status.state, "expected a model directory" in status.error) == ("failed", True)
    client.send(Load("gone"), Load("nobody"), Unload("nobody"))
    assert isinstance(client.ask(Generate("good", "null", text="x"))[0], Finished)


def test_unload_fails_what_is_in_flight_and_the_next_request_loads_again(client: EngineClient) -> None:
    # Given a request in flight
    client.send(Generate("running", "slow", text="x"), Ping())
    # When its model is unloaded
    client.send(Unload("slow"))
    running = client.outcome("running")
    # Then it fails as such, and the model comes back when somebody asks for it
    assert isinstance(running, Failed)
    assert (running.code, running.is_retryable) == ("model_unloaded", True)
    client.send(Generate("again", "slow", text="x"))
    client.wait_until_ready("slow")
    client.send(Cancel(["again"]))
    again = client.outcome("again")
    assert isinstance(again, Failed)
    assert again.code == "cancelled"


def test_hello_tells_device_models_and_counters(client: EngineClient) -> None:
    # When something was generated
    client.ask(Generate("x", "tiny", SHORT, text="the bread"))
    hello = client.hello()
    # Then the greeting knows
    status = {model.name: model for model in hello.models}["tiny"]
    assert (hello.device, status.state, status.context_tokens) == ("cpu", "ready", 512)
    assert status.weight_bytes > 0
    assert hello.stats.completion_tokens_total > 0
    assert hello.stats.num_steps_total > 0


def test_clients_with_the_same_request_ids_do_not_disturb_each_other(endpoint: str, client: EngineClient) -> None:
    with engine_client(endpoint) as other:
        client.send(Generate("same", "endless", ENDLESS, text="x"))
        other.send(Generate("same", "null", text="y"))
        assert isinstance(other.outcome("same"), Finished)
        client.send(Cancel(["same"]))
        assert isinstance(client.outcome("same"), Failed)


@both
def test_a_request_that_runs_alone_is_announced_and_answered(client: EngineClient, model: str) -> None:
    alone = [Generate(f"alone {number}", model, SHORT, text="the wheel", is_alone=True) for number in range(2)]
    answers = client.ask(Generate("other", model, SHORT, text="the wheel"), *alone)
    texts = {answer.text for answer in answers if isinstance(answer, Finished)}
    assert (len(answers), len(texts)) == (3, 1)
    assert [m.id for m in client.received if isinstance(m, Begun)] == ["alone 0", "alone 1"]


def test_the_announcement_arrives_before_the_engine_dies_of_what_it_announces(tmp_path: Path) -> None:
    # Given a model that some prompts take down
    endpoint = f"ipc://{tmp_path}/socket"
    arguments = ["--model", "bad=null:0!poison", "--preload", "bad"]
    with engine_process(endpoint, *arguments) as process, engine_client(endpoint) as client:
        client.wait_until_ready("bad")
        # When one of two requests that run alone does
        client.send(*(Generate(f"{n}", "bad", text=f"{n} poison", is_alone=True) for n in range(2)))
        assert process.wait(DEADLINE_SECONDS) != 0
        # Then the client has heard which one began
        client.wait_for(lambda message: isinstance(message, Begun))
        assert [m.id for m in client.received if isinstance(m, Begun)] == ["0"]


@pytest.mark.parametrize("model", ["endless", "slow"])
def test_sigterm_fails_what_is_in_flight_as_retryable_and_a_restart_is_another_boot(
    tmp_path: Path, endless_directory: Path, model: str
) -> None:
    # Given a process with a request in flight
    endpoint = f"ipc://{tmp_path}/socket"
    arguments = ["--model", f"endless={endless_directory}", "--model", "slow=null:3600", "--preload", model]
    arguments += ["--max-context-tokens", "1000000", "--threads", "1"]
    with engine_process(endpoint, *arguments) as process, engine_client(endpoint) as client:
        boot = client.wait_until_ready(model).boot_id
        client.send(Generate("running", model, ENDLESS, token_ids=[5]), Generate("waiting", model, ENDLESS, text="x"))
        until(lambda: (stats := client.hello().stats).num_running + stats.num_waiting == 2)  # it has both
        # When it is told to end
        process.send_signal(signal.SIGTERM)
        # Then what was in flight may come again, and the process ends in order
        for name in ("running", "waiting"):
            outcome = client.outcome(name)
            assert isinstance(outcome, Failed)
            assert (outcome.code, outcome.is_retryable) == ("interrupted", True)
        assert process.wait(DEADLINE_SECONDS) == 0
    with engine_process(endpoint, *arguments), engine_client(endpoint) as client:
        assert client.hello().boot_id != boot


def test_hello_is_answered_while_the_model_still_loads_and_sigterm_ends_even_that(
    tmp_path: Path, model_directory: Path
) -> None:
    # Given a process that has just begun to import torch and to load
    endpoint = f"ipc://{tmp_path}/socket"
    with (
        engine_process(endpoint, "--model", f"tiny={model_directory}", "--preload", "tiny") as process,
        engine_client(endpoint) as client,
    ):
        # Then it greets, and a request simply waits
        assert [model.state for model in client.hello().models] == ["loading"]
        client.send(Generate("waiting", "tiny", SHORT, text="x"))
        client.hello()
        # And ends when it is told to
        process.send_signal(signal.SIGTERM)
        outcome = client.outcome("waiting")
        assert isinstance(outcome, Failed)
        assert outcome.code == "interrupted"
        assert process.wait(DEADLINE_SECONDS) == 0


def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    # Given an engine whose parent is a shell that named itself as such
    pid_file = tmp_path / "pid"
    script = f'MILLRACE__PARENT_PID=$$ "$PYTHON" -m engine.server --endpoint ipc://{tmp_path}/socket --model n=null: & '
    script += f"echo $! > {pid_file}; wait"
    with subprocess.Popen(["sh", "-c", script], env={**os.environ, "PYTHON": sys.executable}) as shell:
        with engine_client(f"ipc://{tmp_path}/socket") as client:
            client.hello()
        # When the parent is killed
        descriptor = os.pidfd_open(int(pid_file.read_text()))
        shell.kill()
        # Then the engine ends too
        poller = zmq.Poller()
        poller.register(descriptor, zmq.POLLIN)
        assert poller.poll(int(DEADLINE_SECONDS * 1000))
        os.close(descriptor)


def test_an_endpoint_that_cannot_be_bound_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    command = ["--endpoint", f"ipc://{tmp_path}/no/such/directory/socket", "--model", "n=null:"]
    completed = subprocess.run(
        [sys.executable, "-m", "engine.server", *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert completed.returncode == 1
    assert "expected an endpoint that can be bound" in completed.stderr
    assert "Traceback" not in completed.stderr
