"""Taking away a job that has ended, with its requests and outcomes. Its files are its owner's, and stay."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from db.tables import JobRow, OutcomeRow, RequestRow, RetryRow


def remove(session: Session, job: JobRow) -> None:
    """The chunks go with the job."""
    session.execute(delete(OutcomeRow).where(OutcomeRow.job_id == job.id))
    session.execute(delete(RetryRow).where(RetryRow.job_id == job.id))
    session.execute(delete(RequestRow).where(RequestRow.job_id == job.id))
    session.execute(delete(JobRow).where(JobRow.id == job.id))
