"""The scope that a route needs, declared once in its decorator: `@router.get("", dependencies=[READ])`. An application
with a route that declares none is not built. What only looks at a request is a coroutine: FastAPI would send a function
to a thread for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import HTTPBearer

from core.access import Identity, Scope
from core.errors import Forbidden, Unauthenticated

_bearer = HTTPBearer(auto_error=False, description="An API key (`millrace keys create`).", scheme_name="key")


async def get_identity(request: Request) -> Identity:
    """Whom `api.access.gate` let in. Raises Unauthenticated where it let everybody in."""
    identity = request.scope["state"].get("identity")
    if identity is None:
        raise Unauthenticated("expected an API key: send `Authorization: Bearer mr_…`")
    assert isinstance(identity, Identity)
    return identity


@dataclass(frozen=True, slots=True)
class Requires:
    scope: Scope

    async def __call__(
        self, identity: Annotated[Identity, Depends(get_identity)], header: Annotated[object, Depends(_bearer)]
    ) -> None:
        """`header` is there for the OpenAPI document."""
        if self.scope not in identity.scopes:
            held = ", ".join(sorted(identity.scopes)) or "none"
            raise Forbidden(f"expected a key with the scope `{self.scope}`, got one with {held}")


@dataclass(frozen=True, slots=True)
class Open:
    """Nobody is asked for a key. A route that says nothing about anybody's work."""

    async def __call__(self) -> None:
        return


READ = Depends(Requires(Scope.READ))
SUBMIT = Depends(Requires(Scope.SUBMIT))
ADMIN = Depends(Requires(Scope.ADMIN))
PUBLIC = Depends(Open())


@dataclass(frozen=True, slots=True)
class DeclaredRoute:
    """`scope`: None where everybody gets in."""

    path: str
    methods: frozenset[str]
    scope: Scope | None


def declared_routes(app: FastAPI) -> Iterator[DeclaredRoute]:
    """Raises ValueError, which no request can cause, on a route that declares nothing, or two things."""
    for route in iter_route_contexts(app.routes):
        yield DeclaredRoute(route.path or "", frozenset(route.methods or ()), _declared(route))


def _declared(route: RouteContext) -> Scope | None:
    calls = [depends.dependency for depends in getattr(route, "dependencies", ())]
    found = [call for call in calls if isinstance(call, Requires | Open)]
    if len(found) != 1:
        raise ValueError(
            f"{route.path}: expected one of READ, SUBMIT, ADMIN, PUBLIC (api.access.scopes) in the `dependencies` of "
            f"the route, got {len(found)}"
        )
    return found[0].scope if isinstance(found[0], Requires) else None


def public_paths(app: FastAPI) -> frozenset[str]:
    """Paths without parameters alone: what stands open should be seen at once."""
    paths = frozenset(route.path for route in declared_routes(app) if route.scope is None)
    assert not any("{" in path for path in paths), paths
    return paths
