from cli.operations.queues import told


def test_a_pause_is_told_with_what_goes_on_in_spite_of_it() -> None:
    # Given
    answer = {
        "data": [{"model": "*", "queue": "*"}],
        "still_running": [
            {"queue": "batch", "model": "m", "num_rows": 1500, "num_jobs": 12, "jobs": ["a", "b"]},
            {"queue": "heavy", "model": "m", "num_rows": 1, "num_jobs": 1, "jobs": ["job_3"]},
            {"queue": "online", "model": "m", "num_rows": 1, "num_jobs": 1, "jobs": ["job_4"]},
        ],
    }
    # When / Then
    assert told(answer) == [
        "paused: every model, every queue",
        "still running: m, batch: chunks with 1,500 rows (a, b, …); what the engine has is finished, the rest waits",
        "still running: m, heavy: 1 job to the end (job_3); DELETE /api/v1/jobs/ID ends one at once",
        "still running: m, online: 1 request, answered to the end",
    ]


def test_nothing_that_is_held_is_told_too() -> None:
    assert told({"data": [], "still_running": []}) == ["nothing is paused"]
