"""Models that jobs made, as rows; the directories are the tests' own affair."""

from db.jobs import new_public_id
from db.tables import ArtifactRow
from tests.world import MODEL, World

NODE = "node"
NUM_BYTES = 5_000_000


def make_artifact(world: World, name: str = "small") -> ArtifactRow:
    """As a quantization job leaves it."""
    job = new_public_id("job")
    row = ArtifactRow(
        id=job.replace("job_", "art_"),
        name=name,
        kind="quantization",
        source_model=MODEL,
        node=NODE,
        directory=str(world.services.settings.artifacts_path / job),
        num_bytes=NUM_BYTES,
        job_public_id=job,
        details={"method": "nf4"},
    )
    with world.database.begin() as session:
        session.add(row)
        session.flush()
        session.refresh(row)
    return row
