from core.settings import Settings
from tasks.base import MillraceTask
from tasks.factory import create_app
from tasks.messages import RECONCILE
from tasks.queues import CONTROL


def test_messages_are_json_and_nothing_is_acknowledged_before_it_is_done() -> None:
    configuration = create_app(Settings()).conf
    assert configuration.accept_content == ["json"]
    assert configuration.task_acks_late
    assert configuration.task_reject_on_worker_lost
    assert configuration.task_ignore_result
    assert configuration.worker_prefetch_multiplier == 1


def test_a_message_stays_invisible_for_longer_than_any_lease() -> None:
    settings = Settings()
    options = create_app(settings).conf.broker_transport_options
    assert options["visibility_timeout"] > 10 * settings.lease_seconds


def test_the_broker_is_the_one_of_the_settings_in_celerys_spelling() -> None:
    app = create_app(Settings(redis_url="unix:///run/v.sock?db=2"))
    assert app.conf.broker_url == "redis+socket:///run/v.sock?virtual_host=2"


def test_every_task_is_ours_in_name_and_in_how_it_treats_errors() -> None:
    # Given
    app = create_app(Settings())
    app.loader.import_default_modules()

    # Then
    ours = {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}
    assert ours
    assert all(name.startswith("millrace.") for name in ours)
    assert all(isinstance(task, MillraceTask) for task in ours.values())


def test_the_reconciler_runs_by_the_clock_and_its_messages_expire() -> None:
    # When
    schedule = create_app(Settings(reconcile_seconds=7.0)).conf.beat_schedule

    # Then
    entry = schedule["reconcile"]
    assert (entry["task"], entry["schedule"]) == (RECONCILE, 7.0)
    assert entry["options"] == {"queue": CONTROL, "expires": 7.0}
