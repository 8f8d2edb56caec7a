"""Whatever clients send, each request gets exactly one outcome and the loop goes on."""

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from core.protocol import (
    Ack,
    Begun,
    Cancel,
    ClientFrame,
    ClientMessage,
    Confirm,
    Delta,
    Embed,
    Generate,
    Hello,
    Load,
    Ping,
    Sampling,
    Unload,
    decode_client,
    encode,
)
from engine.link import _decode
from engine.waiting.quarantine import NOTICE_SECONDS
from tests.engine_scene import Scene

NUM_TURNS_AT_MOST = 500

MODELS = st.sampled_from(["a", "b", "nobody", ""])
IDS = st.sampled_from(["1", "2", "3", "\x00", "é" * 50])
PRIORITIES = st.sampled_from([0, 10, -(2**62), 2**62])
TIMEOUTS = st.one_of(st.none(), st.floats(), st.sampled_from([0.005, 1e300]))
SAMPLINGS = st.builds(Sampling, temperature=st.floats(), max_tokens=st.one_of(st.none(), st.integers(-5, 5)))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)
MESSAGES = st.one_of(st.none(), st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=2), max_size=2))
TEXTS = st.one_of(st.none(), st.sampled_from(["", "x", "odd"]))
GENERATES = st.builds(
    Generate, IDS, MODELS, SAMPLINGS, messages=MESSAGES, text=TEXTS, priority=PRIORITIES, timeout_seconds=TIMEOUTS,
    num_answers=st.integers(-2, 3), stream=st.booleans(), is_alone=st.booleans(),
)  # fmt: skip
EMBEDS = st.builds(
    Embed, IDS, MODELS, texts=st.one_of(st.none(), st.lists(st.text(max_size=3), max_size=2)), priority=PRIORITIES,
    timeout_seconds=TIMEOUTS, dimensions=st.one_of(st.none(), st.integers(-2, 2)), is_alone=st.booleans(),
)  # fmt: skip
ORDERS = st.one_of(
    st.builds(Load, MODELS), st.builds(Unload, MODELS), st.builds(Cancel, st.lists(IDS, max_size=3)),
    st.builds(Confirm, st.lists(IDS, max_size=3)),
)  # fmt: skip
CLIENT_MESSAGES = st.one_of(GENERATES, GENERATES, EMBEDS, ORDERS, st.builds(Ack, st.lists(IDS, max_size=2)))
FRAMES = st.tuples(st.sampled_from([b"c", b"d"]), st.lists(CLIENT_MESSAGES, max_size=6), st.integers(0, 4))


def asked(messages: list[ClientMessage]) -> list[str]:
    return [message.id for message in messages if isinstance(message, Generate | Embed)]


@settings(deadline=None, max_examples=150)
@given(st.lists(FRAMES, max_size=8))
def test_every_request_has_exactly_one_outcome(frames: list[tuple[bytes, list[ClientMessage], int]]) -> None:
    # Given an engine that grants few credits
    scene = Scene(num_credits=4)
    num_asked: Counter[tuple[bytes, str]] = Counter()
    num_questions: Counter[tuple[bytes, str]] = Counter()
    # When frames of two clients come, as the wire carries them, and turns pass between them
    for client, messages, num_turns in frames:
        scene.post(*decode_client(encode(ClientFrame(messages))).messages, client=client)
        num_asked.update((client, name) for name in asked(messages))
        num_questions.update((client, n) for m in messages if isinstance(m, Cancel | Confirm) for n in m.ids)
        pass_turns(scene, num_turns)
    settle(scene)
    # Then there are as many outcomes as requests, and more only where somebody cancelled or asked about none
    num_ended = Counter(
        (client, m.id) for client, sent in scene.sent.items() for m in sent if not isinstance(m, Begun | Delta | Hello)
    )
    for key in num_asked | num_ended:
        assert num_asked[key] <= num_ended[key] <= num_asked[key] + num_questions[key]
    assert scene.service._live == {}
    assert len(scene.service._deadlines) == 0
    scene.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans(), PRIORITIES, st.integers(0, 5), st.booleans())))
def test_nothing_runs_beside_a_request_that_runs_alone(requests: list[tuple[str, bool, int, int, bool]]) -> None:
    # Given requests of two models, some of which run alone and some of which are cancelled a few turns later
    scene = Scene()
    is_alone = {(b"c", str(number)): request[1] for number, request in enumerate(requests)}
    for number, (model, alone, priority, num_turns, is_cancelled) in enumerate(requests):
        scene.post(Generate(str(number), model, text="x", priority=priority, is_alone=alone))
        # When turns pass, whatever comes meanwhile
        for _ in range(num_turns):
            pass_turns(scene, 1)
            # Then one that runs alone is all that models have
            handed = scene.service._handed
            assert len(handed) <= 1 or not any(is_alone[key] for key in handed)
        if is_cancelled:
            scene.post(Cancel([str(number)]))
    # And all end, those that were not cancelled with their answer
    settle(scene)
    assert set(scene.finished()) | set(scene.failures()) == {name for _, name in is_alone}
    assert set(scene.failures()) <= {str(number) for number, request in enumerate(requests) if request[4]}
    scene.close()


def pass_turns(scene: Scene, count: int) -> None:
    for _ in range(count):
        scene.turn()
        scene.clock.now += NOTICE_SECONDS / 2


def settle(scene: Scene) -> None:
    """Until every request has ended; models that were unloaded load again on their thread."""
    for _ in range(NUM_TURNS_AT_MOST):
        if not scene.service._live and scene.inbox.empty():
            return
        scene.clock.now += min(scene.service._wait_seconds() or 0.0, NOTICE_SECONDS)
        scene.service.turn()
    raise AssertionError(f"expected all requests to end, left are {scene.service._live}")


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_bytes_of_any_kind_are_a_frame_or_nothing(parts: list[bytes]) -> None:
    assert isinstance(_decode(b"c", parts), list)


@given(st.data())
def test_a_frame_that_was_damaged_is_a_frame_or_nothing(data: st.DataObject) -> None:
    # Given a frame of which some bytes are others
    whole = bytearray(encode(ClientFrame([Generate("1", "a", text="x"), Cancel(["2"]), Ping(), Ack(["3"])])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    # Then what can be read of it is messages
    assert all(isinstance(message, msgspec.Struct) for message in _decode(b"c", [bytes(whole)]))
