"""connect: from a URL to a backend, by entry point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, cast

from zart_core.scheduler import Scheduler

GROUP: Final = "zart.schedulers"
"""The entry-point group: the name is the URL scheme, the object a function of (url, **options) that returns a Scheduler."""

_INSTALL: Final = {"postgresql": "zart[postgres]", "postgres": "zart[postgres]"}


def connect(url: str, **options: Any) -> Scheduler:
    """The scheduler for ``url``: ``sqlite:///zart.db`` (a relative path; four slashes for an absolute one), ``sqlite://`` (memory),
    or the scheme of any installed backend. ``options`` are the backend's own. Nothing is opened yet.

    Raises ``ValueError`` for what is not a URL or has a scheme that no installed backend serves; it never shows the URL, which may
    hold a password.
    """
    if not isinstance(url, str) or "://" not in url:
        raise ValueError("a database URL looks like sqlite:///zart.db; this one has no scheme")
    return _factory(url.partition("://")[0].lower())(url, **options)


@cache
def _factory(scheme: str) -> Callable[..., Scheduler]:
    """What makes schedulers for URLs of this scheme.

    Kept, because to look for it is to read about every distribution that is installed: several milliseconds. What was not found is
    looked for again, since only a value is kept.
    """
    found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}
    if scheme not in found:
        hint = f": pip install '{_INSTALL[scheme]}'" if scheme in _INSTALL else ""
        known = ", ".join(sorted(found)) or "none"
        raise ValueError(f"no installed backend serves {scheme}:// URLs (there are: {known}){hint}")
    try:
        return cast(Callable[..., Scheduler], found[scheme].load())
    except ModuleNotFoundError as error:
        hint = f": pip install '{_INSTALL[scheme]}'" if scheme in _INSTALL else ""
        raise ValueError(
            f"the backend for {scheme}:// URLs needs {error.name}, which is not installed{hint}"
        ) from error
