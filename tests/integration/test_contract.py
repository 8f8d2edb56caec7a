"""Every operation of the OpenAPI document against the running API, with bodies and parameters that schemathesis makes
up, right and wrong ones: no defect of the server, no status and no content type that the document does not know. On
this machine without a key, and with a key of each scope, which opens what it should and nothing else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
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

from api.access.scopes import declared_routes
from api.app import create_api
from core.access import Scope
from core.settings import Settings
from tests.answering import Answering
from tests.artifacts import make_artifact
from tests.integration.access.keys import WRONG_KEY, another_key, bearer, make_key
from tests.world import MODEL, batch_file

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NUM_EXAMPLES = 5  # of every operation, with right and with wrong values, for what is there and what is not
NUM_KEY_EXAMPLES = 2
SECONDS = 20
UNAUTHENTICATED, FORBIDDEN = 401, 403
SCOPES = {
    (route.path.replace(":path}", "}"), method): route.scope
    for route in declared_routes(create_api(Settings(database_url="postgresql://")))
    for method in route.methods
}

# Something that is there, for every name that stands in a path. The events of a job that has not ended would not end.
EXISTING: Mapping[str, Callable[[Answering], str]] = {
    "file_id": lambda answering: answering.world.upload(batch_file(range(2))),
    "batch_id": lambda answering: answering.world.start_job(2).public_id,
    "job_id": lambda answering: answering.finish(answering.world.submit(batch_file(range(2))).public_id).public_id,
    "key_id": lambda answering: another_key(answering.world),
    "artifact_id": lambda answering: make_artifact(answering.world).id,
    "name": lambda answering: MODEL,
    "response_id": lambda answering: answering.client.responses.create(model=MODEL, input="hello").id,
}
ASKING_FOR_MORE = frozenset({"/api/v1/usage"})  # of all tenants, with a key that reads


Operation: TypeAlias = APIOperation[Any, Any, Any, Any]


@dataclass(frozen=True)
class Asking:
    """Whoever sends the requests, and how many of which sort; without a key all of them, right and wrong ones."""

    key: str | None = None
    scope: Scope | None = None

    @property
    def modes(self) -> Iterable[GenerationMode]:
        return GenerationMode if self.key is None else (GenerationMode.POSITIVE,)

    @property
    def num_examples(self) -> int:
        return NUM_EXAMPLES if self.key is None else NUM_KEY_EXAMPLES

    def may_get(self, operation: Operation, status: int) -> bool:
        """Whether the status is one that the scope of the key allows."""
        declared = SCOPES[operation.path, operation.method.upper()]
        if self.key is None or declared is None:
            return True
        if self.scope is None:
            return status == UNAUTHENTICATED
        if declared is self.scope:
            return status != UNAUTHENTICATED and (status != FORBIDDEN or operation.path in ASKING_FOR_MORE)
        return status == FORBIDDEN


def document() -> dict[str, Any]:
    return create_api(Settings(database_url="postgresql://")).openapi()


def operations() -> Iterator[Operation]:
    for result in schemathesis.openapi.from_dict(document()).get_all_operations():
        assert isinstance(result, Ok)
        yield result.ok()


def strategies(
    answering: Answering, operation: Operation, modes: Iterable[GenerationMode]
) -> Iterator[SearchStrategy[Case[Any]]]:
    """Of right and of wrong requests, about what is not there and about what is."""
    names = {parameter.name for parameter in operation.path_parameters}
    existing = {name: EXISTING[name](answering) for name in names & EXISTING.keys()}
    for mode in modes:
        yield operation.as_strategy(mode)
        if existing.keys() == names and names:
            yield operation.as_strategy(mode, path_parameters=existing)


def failures(answering: Answering, operation: Operation, session: requests.Session, asking: Asking) -> list[str]:
    found: set[str] = set()
    for strategy in strategies(answering, operation, asking.modes):

        @seed(7)
        @settings(
            max_examples=asking.num_examples,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def hold(case: Case[Any]) -> None:
            response = case.call(base_url=answering.url, session=session, timeout=SECONDS, headers=bearer(asking.key))
            if not asking.may_get(operation, response.status_code):
                found.add(f"{operation.label}: {response.status_code} with a key for {asking.scope or 'nothing'}")
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
        found = [text for operation in operations() for text in failures(answering, operation, session, Asking())]
    # Then
    assert found == [], "\n\n".join(found)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
def test_a_key_of_each_scope_gets_what_the_document_promises_and_opens_nothing_else(answering: Answering) -> None:
    # Given; `admin` comes last, as it may hold the queues that others wait for
    world = answering.world
    keys = {scope: make_key(world, scope) for scope in (Scope.READ, Scope.SUBMIT, Scope.ADMIN)}
    asking = [Asking(WRONG_KEY), *(Asking(key, scope) for scope, key in keys.items())]
    # When
    with requests.Session() as session:
        found = [
            text
            for who in asking
            for operation in operations()
            for text in failures(answering, operation, session, who)
        ]
    # Then
    assert found == [], "\n\n".join(found)
