"""The hosts that a URL names, one URL for each."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

_NOT_HERE = frozenset(("08", "53", "57"))
"""Classes of SQLSTATE by which a host says that another one may do: it starts, stops, or is full."""


def one_by_one(url: str) -> tuple[str, ...]:
    """A URL for each host of ``url``, in their order. Each is tried with a time of its own.

    asyncpg tries several hosts within one time, so a first one that is gone without a word would use up that of all others; and it stops
    at one that answers that it is only starting. ``prefer-standby`` chooses among all, and stays with asyncpg.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    user, at, place = parts.netloc.rpartition("@")
    hosts = place.split(",") if place else query.get("host", "").split(",")
    if len(hosts) < 2 or query.get("target_session_attrs") == "prefer-standby":
        return (url,)
    ports = query.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        return (url,)  # asyncpg says what is wrong
    urls: list[str] = []
    for number, host in enumerate(hosts):
        own = dict(query)
        if len(ports) > 1:
            own["port"] = ports[number]
        netloc = parts.netloc
        if place:
            netloc = f"{user}{at}{host}"
        else:
            own["host"] = host
        urls.append(urlunsplit(parts._replace(netloc=netloc, query=urlencode(own))))
    return tuple(urls)


def wants_primary(url: str) -> bool:
    """Whether only one of the hosts will do, whichever it is."""
    wanted = dict(parse_qsl(urlsplit(url).query)).get("target_session_attrs")
    return wanted in ("read-write", "primary")


def elsewhere(error: BaseException) -> bool:
    """Whether ``error`` of one host is a reason to ask the next."""
    if isinstance(error, OSError) or is_standby(error):  # a TimeoutError is an OSError
        return True
    return (getattr(error, "sqlstate", None) or "")[:2] in _NOT_HERE


def is_standby(error: BaseException) -> bool:
    """Whether a host is well, and not what ``target_session_attrs`` asks for."""
    return isinstance(error, asyncpg.exceptions.TargetServerAttributeNotMatched)
