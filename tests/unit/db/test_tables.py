import pytest

from core.job import JobState
from db.tables import JobRow, OutcomeRow, RequestRow, Row


@pytest.mark.parametrize("state", list(JobState))
def test_a_job_remembers_when_it_came_into_each_state(state: JobState) -> None:
    # It is validating from the moment it was created.
    name = "created_at" if state is JobState.VALIDATING else f"{state.value}_at"
    assert name in JobRow.__table__.columns


def test_every_request_has_at_most_one_outcome() -> None:
    assert [column.name for column in OutcomeRow.__table__.primary_key] == ["job_id", "index"]
    assert [column.name for column in RequestRow.__table__.primary_key] == ["job_id", "index"]


def test_what_a_user_owns_names_its_tenant() -> None:
    owned = {"api_keys", "artifacts", "files", "idempotency_keys", "jobs", "responses", "tenant_limits"}
    owned |= {"webhook_endpoints"}
    owned |= {"chunks", "tenant_shares", "usage_days", "usage_entries"}  # of a job's tenant
    assert {name for name, table in Row.metadata.tables.items() if "tenant" in table.columns} == owned
