"""The two spellings of a Redis URL. redis-py says `unix:///path?db=0` for a Unix socket, kombu (Celery, Flower) says
`redis+socket:///path?virtual_host=0`; over TCP both say `redis://host:port/0`. Settings may hold either spelling.
"""

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_CLIENT_SCHEME, _CLIENT_DATABASE = "unix", "db"
_BROKER_SCHEME, _BROKER_DATABASE = "redis+socket", "virtual_host"


def client_url(url: str) -> str:
    """As `redis.Redis.from_url` wants it."""
    return _respell(url, _BROKER_SCHEME, _CLIENT_SCHEME, {_BROKER_DATABASE: _CLIENT_DATABASE})


def broker_url(url: str) -> str:
    """As Celery and Flower want it."""
    return _respell(url, _CLIENT_SCHEME, _BROKER_SCHEME, {_CLIENT_DATABASE: _BROKER_DATABASE})


def _respell(url: str, scheme: str, wanted: str, parameters: dict[str, str]) -> str:
    parts = urlsplit(url)
    if parts.scheme != scheme:
        return url
    query = urlencode([(parameters.get(name, name), value) for name, value in parse_qsl(parts.query)], safe="/")
    # urlunsplit writes the empty host, without which neither library sees a path, only for schemes it knows
    return f"{wanted}://{urlunsplit(('', parts.netloc, parts.path, query, '')).removeprefix('//')}"
