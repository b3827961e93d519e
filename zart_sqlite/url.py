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
    :class:`SqliteScheduler` and win over them. Raises ``ValueError`` for anything else; its text never shows the
    URL: one that was meant for another backend may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise ValueError(f"this is not a sqlite: URL, it begins with {parts.scheme}:")
    # What a scheme is may be written in capitals (RFC 3986, 3.1).
    if not url.lower().startswith("sqlite://"):
        raise ValueError(
            "a SQLite URL has two slashes or more: sqlite:///relative.db, sqlite:////absolute/path.db, sqlite:// (memory)"
        )
    if parts.netloc:
        raise ValueError(
            "the SQLite URL names a host, and SQLite has none: write three slashes before a relative path "
            "(sqlite:///zart.db), four before an absolute one"
        )
    if parts.fragment:
        raise ValueError("the SQLite URL has a fragment; write # in a path as %23")
    path = unquote(parts.path.removeprefix("/"))
    return SqliteScheduler(path or MEMORY, **{**_parameters(parts.query), **options})


def _parameters(query: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _KNOWN:
            raise ValueError(f"the SQLite URL has an unknown parameter {name!r}; known are {', '.join(_KNOWN)}")
        if name in parameters:
            raise ValueError(f"the SQLite URL has the parameter {name!r} twice")
        parameters[name] = value
    if "readers" in parameters:
        try:
            parameters["readers"] = int(parameters["readers"])
        except ValueError:
            raise ValueError(f"readers in the SQLite URL must be a number, not {parameters['readers']!r}") from None
    return parameters
