"""Every operation of the OpenAPI document against the running API, with bodies and parameters that schemathesis makes
up, right and wrong ones: no defect of the server, no status and no content type that the document does not know.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.generation.case import Case
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_api
from core.settings import Settings
from tests.answering import Answering
from tests.artifacts import make_artifact
from tests.world import MODEL, batch_file

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NUM_EXAMPLES = 5  # of every operation, with right and with wrong values, for what is there and what is not
SECONDS = 20

# Something that is there, for every name that stands in a path. The events of a job that has not ended would not end.
EXISTING: Mapping[str, Callable[[Answering], str]] = {
    "file_id": lambda answering: answering.world.upload(batch_file(range(2))),
    "batch_id": lambda answering: answering.world.start_job(2).public_id,
    "job_id": lambda answering: answering.finish(answering.world.submit(batch_file(range(2))).public_id).public_id,
    "artifact_id": lambda answering: make_artifact(answering.world).id,
    "name": lambda answering: MODEL,
    "response_id": lambda answering: answering.client.responses.create(model=MODEL, input="hello").id,
}


Operation: TypeAlias = APIOperation[Any, Any, Any, Any]


def document() -> dict[str, Any]:
    return create_api(Settings(database_url="postgresql://")).openapi()


def operations() -> Iterator[Operation]:
    for result in schemathesis.openapi.from_dict(document()).get_all_operations():
        assert isinstance(result, Ok)
        yield result.ok()


def strategies(answering: Answering, operation: Operation) -> Iterator[SearchStrategy[Case[Any]]]:
    """Of right and of wrong requests, about what is not there and about what is."""
    names = {parameter.name for parameter in operation.path_parameters}
    existing = {name: EXISTING[name](answering) for name in names & EXISTING.keys()}
    for mode in GenerationMode:
        yield operation.as_strategy(mode)
        if existing.keys() == names and names:
            yield operation.as_strategy(mode, path_parameters=existing)


def failures(answering: Answering, operation: Operation, session: requests.Session) -> list[str]:
    found: set[str] = set()
    for strategy in strategies(answering, operation):

        @seed(7)
        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def hold(case: Case[Any]) -> None:
            response = case.call(base_url=answering.url, session=session, timeout=SECONDS)
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as group:  # all of them are wanted, and none of them smaller
                found.update(f"{operation.label}: {failure}" for failure in group.exceptions)

        with suppress(Unsatisfiable):  # nothing can be wrong about a request that carries nothing
            hold()
    return sorted(found)


# schemathesis draws from `random` inside of its strategies.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_every_answer_is_one_that_the_document_promises(answering: Answering) -> None:
    # When
    with requests.Session() as session:
        found = [text for operation in operations() for text in failures(answering, operation, session)]
    # Then
    assert found == [], "\n\n".join(found)
