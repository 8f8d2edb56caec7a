"""The main loop, turn by turn, over models that do as they are told."""

import pytest

from core.errors import EngineLost
from core.protocol import Cancel, Confirm, Embed, Failed, Load, Spent, Unload
from engine.link import ClientLost, LinkBroken
from engine.service import Stop
from tests.engine_scene import LIMIT_CELSIUS, Scene, Stepper, ask


def test_models_with_work_step_in_turn() -> None:
    scene = Scene()
    scene.post(ask("1", "a"), ask("2", "b"))
    scene.turn(6)
    assert [entry for entry in scene.journal if entry.endswith("steps")] == ["a steps", "b steps"] * 3
    assert scene.finished() == ["1", "2"]


def test_models_share_the_time_of_the_device_and_not_the_number_of_steps() -> None:
    # Given a model whose steps take three times as long as the other's
    scene = Scene()
    for name, seconds in (("a", 3.0), ("b", 1.0)):
        runtime = scene.registry.models[name].runtime
        assert isinstance(runtime, Stepper)
        runtime.step_seconds = seconds
    # When both always have something to do
    for number in range(24):
        scene.post(ask(f"a{number}", "a"), ask(f"b{number}", "b"))
        scene.turn()
    # Then
    steps = [entry[0] for entry in scene.journal if entry.endswith("steps")]
    assert (steps.count("a"), steps.count("b")) == (6, 18)


def test_tokenization_pauses_for_steps_and_lets_the_urgent_go_first() -> None:
    # Given ten requests whose preparation takes 2 ms each, the last of which is urgent
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(9)), ask("urgent", priority=10))
    # When two turns pass
    scene.turn(2)
    # Then each prepared what 5 ms allow and stepped, the urgent one first
    takes = ["a takes urgent", "a takes 0", "a takes 1", "a steps", "a takes 2", "a takes 3", "a takes 4", "a steps"]
    assert scene.journal == takes


def test_answers_of_one_turn_to_one_client_travel_together() -> None:
    scene = Scene()
    frames: list[tuple[bytes, int]] = []
    scene.service._send = lambda client, messages: frames.append((client, len(messages)))
    scene.post(ask("1"), ask("2"))
    scene.post(ask("1"), client=b"d")
    scene.turn(3)
    assert sorted(frames) == [(b"c", 2), (b"d", 1)]


def test_credits_bound_what_one_client_has_in_flight_and_come_back() -> None:
    scene = Scene(num_credits=2)
    scene.post(ask("1"), ask("2"), ask("3"))
    scene.post(ask("1"), client=b"d")
    scene.turn(3)
    assert scene.failures() == {"3": "overloaded"}
    assert (scene.finished(), scene.finished(b"d")) == (["1", "2"], ["1"])
    scene.post(ask("4"), ask("5"))
    scene.turn(3)
    assert scene.finished() == ["1", "2", "4", "5"]


def test_cancel_reaches_requests_that_wait_and_requests_that_run() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(5)))  # three are prepared in the first turn, two wait
    scene.turn()
    scene.post(Cancel(["0", "4", "unknown"]))
    scene.turn(5)
    # the client of an unknown one may still count it as in flight, so it hears the same
    assert scene.failures() == {"0": "cancelled", "4": "cancelled", "unknown": "cancelled"}
    assert scene.spent() == {"0": Spent(prompt_tokens=1)}, "the others had not begun"
    assert scene.finished() == ["1", "2", "3"]


def test_a_client_that_asks_hears_of_requests_that_nobody_knows() -> None:
    scene = Scene()
    scene.post(ask("here"))
    scene.turn()
    scene.post(Confirm(["here", "gone", "gone"]))
    scene.turn()
    assert scene.failures() == {"gone": "not_received"}
    assert len(scene.sent[b"c"]) == 1


def test_a_lost_client_takes_its_requests_along_and_nobody_elses() -> None:
    scene = Scene()
    scene.post(ask("1"), ask("2", "b"))
    scene.post(ask("1"), client=b"d")
    scene.turn()
    scene.inbox.put(ClientLost(b"c"))
    scene.turn(3)
    assert b"c" not in scene.sent
    assert scene.finished(b"d") == ["1"]


def test_a_request_that_breaks_its_preparation_fails_alone() -> None:
    scene = Scene()
    scene.post(ask("odd", text="odd"), ask("fine"))
    scene.turn(3)
    assert scene.failures() == {"odd": "model_failure"}
    assert scene.finished() == ["fine"]


def test_a_model_that_cannot_load_fails_who_waits_at_once_and_is_not_tried_for_everyone() -> None:
    # Given a model whose weights are missing
    scene = Scene()
    scene.post(ask("1", "bad"), ask("2", "bad"), ask("good"))
    while len(scene.failures()) < 2:
        scene.service.turn()  # waits for the loading thread
    # When more requests come soon after
    scene.post(ask("3", "bad"))
    scene.turn(3)
    # Then they fail without another try, and others are served; `Load` tries again at once
    assert scene.failures() == dict.fromkeys("123", "model_not_loaded")
    assert scene.num_loads == 3
    assert scene.finished() == ["good"]
    scene.post(Load("bad"))
    scene.turn()
    assert scene.registry.models["bad"].state == "loading"


def test_unload_fails_what_the_model_has_and_closes_it() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(4)), ask("other", "b"))
    scene.turn()
    scene.post(Unload("a"), Unload("nobody"))
    scene.turn(3)
    assert scene.failures() == dict.fromkeys("0123", "model_unloaded")
    assert scene.finished() == ["other"]
    assert "a closes" in scene.journal


def test_stop_fails_all_that_is_in_flight_as_retryable() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(5)))
    scene.turn()
    scene.inbox.put(Stop())
    scene.service.run()
    scene.service.end()
    assert scene.failures() == dict.fromkeys("01234", "interrupted")
    assert all(message.is_retryable for message in scene.sent[b"c"] if isinstance(message, Failed))


def test_a_broken_link_ends_the_service() -> None:
    scene = Scene()
    scene.inbox.put(LinkBroken(EngineLost("deaf")))
    with pytest.raises(EngineLost):
        scene.service.run()


def test_the_greeting_shows_models_and_what_they_do() -> None:
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(5)))
    scene.turn()
    hello = scene.service.hello
    assert [(model.name, model.state) for model in hello.models] == [
        ("a", "ready"),
        ("b", "ready"),
        ("bad", "unloaded"),
    ]
    assert (hello.stats.num_running, hello.stats.num_waiting, hello.stats.num_slots) == (3, 2, 8)


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    # Given requests of two seconds: one that runs, one that nobody has looked at, one whose model never loads
    scene = Scene()
    scene.post(*(ask(str(number), timeout_seconds=2.0) for number in range(4)), ask("patient"))
    scene.registry.models["b"].runtime = None
    scene.post(ask("loading", "b", timeout_seconds=1.5))
    scene.turn()
    assert scene.journal == ["a takes 0", "a takes 1", "a takes 2", "a steps"]
    # When time passes
    scene.clock.now = 1.6
    scene.service.turn()
    assert scene.failures() == {"loading": "deadline_exceeded"}
    scene.clock.now = 2.1
    scene.turn(5)
    # Then each has its outcome and the patient one is answered
    assert scene.failures() == dict.fromkeys([*"0123", "loading"], "deadline_exceeded")
    assert not any(message.is_retryable for message in scene.sent[b"c"] if isinstance(message, Failed))
    assert scene.finished() == ["patient"]


def test_the_loop_wakes_for_a_deadline_though_nothing_else_happens() -> None:
    # Given a model that is not there, and a request that waits for it
    scene = Scene()
    scene.registry.models["b"].runtime = None
    scene.post(ask("x", "b", timeout_seconds=3.0))
    scene.turn()
    # When one second has passed
    scene.clock.now = 1.0
    # Then two are left
    assert scene.service._wait_seconds() == 2.0
    # And none of it when the request has ended
    scene.post(Cancel(["x"]))
    scene.turn()
    assert scene.service._wait_seconds() is None


def test_a_request_that_ended_in_time_is_not_ended_again_by_its_deadline() -> None:
    scene = Scene()
    scene.post(ask("x", timeout_seconds=5.0))
    scene.turn(3)
    scene.clock.now = 6.0
    scene.post(ask("y"))
    scene.turn(3)
    assert (scene.finished(), scene.failures()) == (["x", "y"], {})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_refused(seconds: float) -> None:
    scene = Scene()
    scene.post(ask("x", timeout_seconds=seconds))
    scene.turn()
    assert scene.failures() == {"x": "invalid_request"}


def test_texts_to_embed_go_the_way_of_prompts() -> None:
    # Given texts among prompts, one of them for a model that is not there
    scene = Scene()
    scene.post(
        ask("prompt"), Embed("texts", "a", texts=["x"], timeout_seconds=9.0), Embed("nowhere", "nobody", texts=["x"])
    )
    scene.turn()
    scene.post(Embed("cancelled", "a", texts=["x"]), Cancel(["cancelled"]))
    scene.turn(3)
    # Then each has its outcome
    assert scene.failures() == {"nowhere": "model_not_found", "cancelled": "cancelled"}
    assert scene.finished() == ["prompt", "texts"]


def test_a_hot_device_begins_no_bulk_work_but_what_somebody_waits_for() -> None:
    # Given a request that runs when the device gets too hot
    scene = Scene()
    scene.post(ask("runs"))
    scene.turn()
    scene.heat(LIMIT_CELSIUS + 1)
    # When more of both kinds come
    scene.post(ask("bulk"), ask("urgent", priority=10))
    scene.turn(3)
    # Then the running one and the urgent one are answered, and the loop does not spin for the other
    assert scene.finished() == ["runs", "urgent"]
    assert scene.service.hello.stats.num_waiting == 1
    assert scene.service._wait_seconds() == 1.0
    # And a little less heat changes nothing, but five degrees do
    scene.heat(LIMIT_CELSIUS - 1)
    scene.inbox.put(ClientLost(b"nobody"))
    scene.turn()
    assert "a takes bulk" not in scene.journal
    scene.heat(LIMIT_CELSIUS - 5)
    scene.inbox.put(ClientLost(b"nobody"))
    scene.turn(4)
    assert scene.finished() == ["runs", "urgent", "bulk"]


def test_models_are_told_when_bulk_work_is_held_those_that_come_later_too() -> None:
    # Given a hot device
    scene = Scene()
    scene.heat(LIMIT_CELSIUS + 1)
    scene.post(Unload("b"))
    scene.service.turn()
    # When a model is loaded
    scene.post(ask("x", "b", priority=10))
    while scene.registry.models["b"].runtime is None:
        scene.service.turn()
    # Then it knows, as the others do
    assert [getattr(scene.registry.models[name].runtime, "is_bulk_held", None) for name in "ab"] == [True, True]
    scene.heat(None)
    scene.turn()
    assert [getattr(scene.registry.models[name].runtime, "is_bulk_held", None) for name in "ab"] == [False, False]


def test_an_online_request_waits_at_the_door_for_one_turn_at_most() -> None:
    # Given a hundred bulk requests whose preparation takes 2 ms each
    scene = Scene()
    scene.post(*(ask(str(number)) for number in range(90)))
    scene.turn()
    # When somebody who waits comes in the middle
    num_before = len(scene.journal)
    scene.post(ask("urgent", priority=10))
    scene.turn()
    # Then it is prepared first of all in the very next turn
    assert scene.journal[num_before] == "a takes urgent"


def test_an_outcome_that_a_model_says_twice_is_said_once() -> None:
    scene = Scene()
    scene.post(ask("x"))
    scene.turn(2)
    runtime = scene.registry.models["a"].runtime
    assert runtime is not None
    step = runtime.step
    runtime.step = lambda: [*(replies := step()), *replies]  # type: ignore[method-assign]
    scene.turn()
    assert scene.finished() == ["x"]


def test_figures_are_made_again_when_the_loop_comes_to_rest_and_else_a_few_times_a_second() -> None:
    # Given a loop whose clock stands still
    scene = Scene()
    scene.post(ask("x"))
    made: list[float] = []
    stats = scene.service._stats
    scene.service._stats = lambda now: made.append(now) or stats(now)  # type: ignore[func-returns-value, method-assign]
    # When four turns pass, the last of which leaves nothing to do
    scene.turn(4)
    # Then they were made for the first one and for the last
    assert len(made) == 2
    assert scene.service.hello.stats.num_running == 0
