"""A job's row changes its state exactly as the table in `core.job` says."""

from itertools import product

from sqlalchemy import text

from core.job import JOB_MOVES, JobState
from db import jobs
from tests.world import World


def test_a_job_moves_exactly_as_the_table_says(world: World) -> None:
    # Given
    job = world.submit(b"{}")
    moved = {}
    # When every move is tried from every state, but for the first state, where jobs begin and nothing leads to
    targets = [state for state in JobState if state is not JobState.VALIDATING]
    for current, following in product(JobState, targets):
        with world.database.begin() as session:
            session.execute(text("UPDATE jobs SET state = :state"), {"state": current.value})
            moved[current, following] = jobs.move(session, job.id, following)
        assert (world.job(job.public_id).state == following) == (moved[current, following] or current is following)
    # Then
    assert {pair for pair, has_moved in moved.items() if has_moved} == {
        (current, following) for current, allowed in JOB_MOVES.items() for following in allowed
    }
