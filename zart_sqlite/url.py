"""``sqlite:`` URLs."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from zart_sqlite.database import MEMORY
from zart_sqlite.scheduler import SqliteScheduler

_KNOWN: Final = ("synchronous", "readers", "max_wait")


def from_url(url: str, **options: Any) -> SqliteScheduler:
    """The scheduler for ``sqlite:///relative.db``, ``sqlite:////absolute/path.db`` or ``sqlite://`` (in memory).

    ``synchronous``, ``readers`` and ``max_wait`` may be given as query parameters; ``options`` are those of
    :class:`SqliteScheduler` and win over them. Raises ``ValueError`` for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise ValueError(f"{url!r} is not a sqlite: URL")
    if not url.startswith("sqlite://"):
        raise ValueError(
            f"{url!r} needs two slashes: sqlite:///relative.db, sqlite:////absolute/path.db, sqlite:// (memory)"
        )
    if parts.netloc:
        raise ValueError(
            f"{url!r} names a host, and SQLite has none: write sqlite:///{parts.netloc}{parts.path} for a relative "
            "path, with four slashes for an absolute one"
        )
    if parts.fragment:
        raise ValueError(f"{url!r} has a fragment; write # in a path as %23")
    path = unquote(parts.path.removeprefix("/"))
    return SqliteScheduler(path or MEMORY, **{**_parameters(url, parts.query), **options})


def _parameters(url: str, query: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _KNOWN:
            raise ValueError(f"{url!r} has an unknown parameter {name!r}; known are {', '.join(_KNOWN)}")
        if name in parameters:
            raise ValueError(f"{url!r} has the parameter {name!r} twice")
        parameters[name] = value
    if "readers" in parameters:
        try:
            parameters["readers"] = int(parameters["readers"])
        except ValueError:
            raise ValueError(f"{url!r}: readers must be a number, not {parameters['readers']!r}") from None
    return parameters
