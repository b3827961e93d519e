"""From a URL to a scheduler."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from zart_postgres.scheduler import PostgresScheduler

_TEXTS: Final = ("schema", "listen_url")
_TIMES: Final = ("connect_timeout", "command_timeout")
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_FLAGS: Final = ("pooler", "auto_migrate")
_NUMBERS: Final = ("pool_size",)


def from_url(url: str, **options: Any) -> PostgresScheduler:
    """The scheduler for ``postgresql://user:password@host:port/database`` (or ``postgres://``).

    ``schema``, ``pool_size``, ``connect_timeout``, ``command_timeout``, ``pooler``, ``listen_url`` and ``auto_migrate`` may be
    given as query parameters; other parameters (``sslmode``, ``host``, ``target_session_attrs``, …) are libpq's.
    ``options`` are those of :class:`PostgresScheduler` and win. Raises ``ValueError`` for anything else; its text never
    shows the URL, which may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError(f"a Postgres URL begins with postgresql://, not with {parts.scheme}:")
    ours: dict[str, Any] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ours:
            raise ValueError(f"the Postgres URL has the parameter {name!r} twice")
        if name in _TIMES:
            # As libpq spells it, a bare number is seconds.
            ours[name] = float(value) if _SECONDS.fullmatch(value) else value
        elif name in _TEXTS:
            ours[name] = value
        elif name in _FLAGS:
            ours[name] = _flag(name, value)
        elif name in _NUMBERS:
            ours[name] = _number(name, value)
        else:
            theirs.append((name, value))
    plain = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(theirs), parts.fragment))
    return PostgresScheduler(plain, **{**ours, **options})


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{name} in the Postgres URL must be true or false, not {value!r}")
    return value.lower() in ("1", "true", "yes", "on")


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} in the Postgres URL must be a number, not {value!r}") from None
