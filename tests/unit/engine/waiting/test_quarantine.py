"""Requests that run alone."""

import pytest

from core.protocol import Begun, Cancel, Embed, Load, Unload
from engine.link import ClientLost
from engine.waiting.quarantine import NOTICE_SECONDS, PATIENCE_SECONDS
from tests.engine_scene import LIMIT_CELSIUS, Scene, Stepper, ask


def begun(scene: Scene) -> list[str]:
    return [message.id for message in scene.sent.get(b"c", []) if isinstance(message, Begun)]


def give_notice(scene: Scene) -> None:
    """Let the time between announcement and beginning pass."""
    scene.clock.now += NOTICE_SECONDS


def test_it_waits_for_what_runs_and_what_comes_waits_for_it() -> None:
    # Given a running request of one model when one of another model that runs alone and more of both come
    scene = Scene()
    scene.post(ask("runs", "a"))
    scene.turn()
    scene.post(ask("alone", "b", is_alone=True), ask("later", "a"), ask("later too", "b"))
    # When turns pass
    scene.turn(3)
    # Then it is announced once the running one has ended, and nothing else has begun
    assert (scene.finished(), begun(scene)) == (["runs"], ["alone"])
    assert scene.journal == ["a takes runs", "a steps", "a steps", "a steps"]
    assert scene.service.hello.stats.num_waiting == 3
    # And it begins a moment later, and the others after it
    give_notice(scene)
    scene.turn(9)
    assert scene.journal[4:8] == ["b takes alone", "b steps", "b steps", "b steps"]
    assert scene.finished() == ["runs", "alone", "later", "later too"]


def test_the_loop_rests_until_its_moment_has_come() -> None:
    scene = Scene()
    scene.post(ask("alone", is_alone=True))
    scene.turn()
    assert scene.service._wait_seconds() == pytest.approx(NOTICE_SECONDS)
    give_notice(scene)
    scene.turn(3)
    assert scene.finished() == ["alone"]
    assert scene.service._wait_seconds() is None


def test_several_run_one_after_the_other_the_urgent_one_first() -> None:
    scene = Scene()
    scene.post(ask("1", is_alone=True), ask("2", "b", is_alone=True), ask("urgent", is_alone=True, priority=10))
    for _ in range(3):
        scene.turn(1)
        give_notice(scene)
        scene.turn(3)
    assert begun(scene) == scene.finished() == ["urgent", "1", "2"]
    assert [entry for entry in scene.journal if "takes" in entry] == ["a takes urgent", "a takes 1", "b takes 2"]


def test_who_waits_for_an_answer_goes_on_beginning_for_a_while() -> None:
    # Given one that waits to run alone while a long one runs
    scene = Scene()
    scene.post(ask("runs"))
    scene.turn()
    scene.post(ask("alone", is_alone=True), ask("bulk"))
    scene.turn()
    # When somebody asks, and again after some time
    scene.post(ask("urgent", priority=10))
    scene.turn()
    scene.clock.now += PATIENCE_SECONDS
    scene.post(ask("urgent too", priority=10))
    scene.turn(3)
    # Then the first one began beside it, the second one did not
    assert scene.finished() == ["runs", "urgent"]
    assert begun(scene) == ["alone"]
    give_notice(scene)
    scene.turn(9)
    assert scene.finished() == ["runs", "urgent", "alone", "urgent too", "bulk"]


@pytest.mark.parametrize("is_announced", [False, True])
def test_one_that_ends_before_it_begins_holds_nobody_back(is_announced: bool) -> None:
    # Given one that waits to run alone, announced already or not
    scene = Scene()
    if not is_announced:
        scene.post(ask("runs"))
        scene.turn()
    scene.post(ask("alone", is_alone=True, timeout_seconds=5.0))
    scene.turn()
    assert begun(scene) == (["alone"] if is_announced else [])
    # When it is cancelled, or its time is over
    scene.post(ask("next"))
    if is_announced:
        scene.clock.now = 6.0
    else:
        scene.post(Cancel(["alone"]))
    scene.turn(6)
    # Then the others go on
    assert scene.failures() == {"alone": "deadline_exceeded" if is_announced else "cancelled"}
    assert scene.finished() == (["next"] if is_announced else ["runs", "next"])


@pytest.mark.parametrize("end", [Cancel(["alone"]), ClientLost(b"c"), Unload("a")])
def test_one_that_ends_while_it_runs_lets_the_others_in(end: Cancel | ClientLost | Unload) -> None:
    # Given one that runs alone
    scene = Scene()
    scene.post(ask("alone", is_alone=True))
    scene.turn()
    give_notice(scene)
    scene.post(ask("next", "b"), client=b"d")
    scene.turn()
    assert scene.journal == ["a takes alone", "a steps"]
    # When it ends
    scene.inbox.put(end) if isinstance(end, ClientLost) else scene.post(end)
    scene.turn(6)
    # Then
    assert scene.finished(b"d") == ["next"]
    assert scene.service._handed == set()


def test_one_whose_model_is_not_there_holds_nobody_back() -> None:
    # Given a model that is not loaded
    scene = Scene()
    scene.registry.models["b"].runtime = None
    scene.post(ask("alone", "b", is_alone=True), ask("other"))
    # When turns pass, others are served
    scene.turn(3)
    assert (scene.finished(), begun(scene)) == (["other"], [])
    assert scene.service._wait_seconds() is None
    # And it begins when the model is there
    scene.registry.models["b"].runtime = Stepper("b", scene.journal, scene.clock)
    scene.post(Load("b"))
    scene.turn()
    give_notice(scene)
    scene.turn(3)
    assert scene.finished() == ["other", "alone"]


def test_a_hot_device_begins_it_when_it_has_cooled_down() -> None:
    scene = Scene()
    scene.heat(LIMIT_CELSIUS + 1)
    scene.post(ask("alone", is_alone=True), ask("urgent", priority=10))
    scene.turn(6)
    assert (scene.finished(), begun(scene)) == (["urgent"], [])
    scene.heat(LIMIT_CELSIUS - 5)
    scene.inbox.put(ClientLost(b"nobody"))
    scene.turn()
    give_notice(scene)
    scene.turn(3)
    assert scene.finished() == ["urgent", "alone"]


def test_one_that_breaks_its_preparation_lets_the_others_in() -> None:
    scene = Scene()
    scene.post(ask("odd", text="odd", is_alone=True), Embed("texts", "b", texts=["x"], is_alone=True))
    for _ in range(2):
        scene.turn(1)
        give_notice(scene)
        scene.turn(3)
    assert scene.failures() == {"odd": "model_failure"}
    assert scene.finished() == ["texts"]
