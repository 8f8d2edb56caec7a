"""Composition root of the API: builds what the routes need from settings and puts the routes together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import CapacityLimiter
from fastapi import FastAPI
from redis import ConnectionPool, Redis
from redis.asyncio import Redis as AsyncRedis
from starlette.concurrency import run_in_threadpool

from api import errors, health, home
from api.access import keys, login
from api.access.admission import Admission
from api.access.binding import check_binding
from api.access.body import BodyLimit
from api.access.gate import Gate
from api.access.hosts import TrustedHosts
from api.access.keyring import KeyRing
from api.access.rates import Rates
from api.access.scopes import public_paths
from api.broker import Broker
from api.codecs import Codecs
from api.context import Context
from api.contract import pages as contract
from api.contract.document import Api
from api.draining import Drain, Draining
from api.native import artifacts, events, jobs, metrics, operations, queues, requests, usage
from api.openai import batches, completions, embeddings, files, models, webhooks
from api.openai.intake import Intake
from api.openai.responses import routes as responses
from api.openai.served import Served
from api.request_meter import Meters, RequestMeter
from api.streaming.ends import Ends
from core.access import is_loopback
from core.errors import ConfigurationError
from core.redis_url import client_url
from core.settings import Settings
from db.connection import Database
from db.files import open_file_store
from tasks.breaker.circuit import Breaker
from tasks.factory import DEFAULT_BROKER_URL, create_app
from tasks.messages import Messages

DATABASE_CONNECTIONS = 16
SPARE_CONNECTIONS = 64  # to Redis, beside those of people who wait: each has one
ADMISSION_SECONDS = 0.5
MAX_TEST_SENDERS = 2
MAX_BODY_READERS = 2
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def build_context(settings: Settings) -> Context:
    """Raises ConfigurationError without a database."""
    if settings.database_url is None:
        raise ConfigurationError("MILLRACE_DATABASE_URL: expected postgresql://…; `millrace up` brings its own")
    database = Database(settings.database_url, pool_size=DATABASE_CONNECTIONS)
    redis: AsyncRedis = AsyncRedis.from_url(
        client_url(settings.redis_url or DEFAULT_BROKER_URL),
        socket_timeout=10,
        max_connections=settings.max_waiting_requests + SPARE_CONNECTIONS,
    )
    messages = Messages(create_app(settings))
    files = open_file_store(settings.file_store, database)
    codecs = Codecs(settings.model_sources, settings.max_context_tokens)
    broker = Broker(redis, messages)
    admission = build_admission(settings, database)
    return Context(
        settings=settings,
        database=database,
        files=files,
        redis=redis,
        messages=messages,
        keys=KeyRing(database),
        admission=admission,
        codecs=codecs,
        broker=broker,
        served=Served(database),
        ends=Ends(redis),
        intake=Intake(database, broker),
        test_senders=CapacityLimiter(MAX_TEST_SENDERS),
        body_readers=CapacityLimiter(MAX_BODY_READERS),
    )


def build_admission(settings: Settings, database: Database) -> Admission:
    """Its Redis is asked while somebody waits, so it has little time."""
    url = client_url(settings.redis_url or DEFAULT_BROKER_URL)
    pool = ConnectionPool.from_url(
        url, socket_timeout=ADMISSION_SECONDS, socket_connect_timeout=ADMISSION_SECONDS, max_connections=64
    )
    breaker = Breaker.of(settings, Redis(connection_pool=pool))
    return Admission(database, Rates(pool), breaker, max_waiting=settings.max_waiting_requests)


def allowed_hosts(settings: Settings) -> list[str]:
    named = [name.strip() for name in settings.trusted_hosts.split(",")]
    return [*LOOPBACK_NAMES, settings.host, *filter(None, named)]


def create_api(settings: Settings) -> FastAPI:
    drain = Drain()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = build_context(settings)
        if not is_loopback(settings.host):
            await run_in_threadpool(check_binding, settings, context.database)
        app.state.context = context
        drain.attach()
        context.intake.start()
        async with context.ends.listening():
            yield
        await run_in_threadpool(context.intake.close)
        await context.redis.aclose()
        context.admission.close()
        context.database.close()

    app = Api(
        title="Millrace",
        version=version("millrace"),
        summary="LLM jobs on your own GPUs: OpenAI-compatible batches and completions.",
        lifespan=lifespan,
        openapi_url=None,  # api.contract.pages serves it, to those who have a key
    )
    openai = (files, batches, models, completions, embeddings, responses, webhooks)
    native = (jobs, requests, events, artifacts, queues, operations, keys, metrics, usage)
    for module in (*openai, *native, health, home, login, contract):
        app.include_router(module.router)
    app.add_middleware(BodyLimit, max_file_bytes=settings.max_file_bytes)
    app.add_middleware(Gate, public_paths=public_paths(app), is_key_required=settings.auth != "local")
    app.add_middleware(TrustedHosts, allowed=allowed_hosts(settings))
    app.state.meters = Meters()
    app.add_middleware(RequestMeter, meters=app.state.meters)
    app.add_middleware(Draining, drain=drain)  # the outermost
    app.state.drain = drain
    errors.install(app)
    return app
