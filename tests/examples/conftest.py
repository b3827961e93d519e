from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.postgres.server import NEWEST, VERSIONS, create_database, drop_database, named, server_url

Lines = Callable[[Callable[[], Coroutine[Any, Any, None]]], list[str]]


@pytest.fixture
def lines_in_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Runs an example's ``main`` in this process, on SQLite in memory, and gives the lines that it prints."""
    monkeypatch.delenv("ZART_DATABASE_URL", raising=False)

    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> list[str]:
        asyncio.run(main())
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.splitlines()

    return run


# What differs between servers is told by the contract and by the behaviour suite, which run on the oldest and the newest.
@pytest.fixture(
    params=[pytest.param(version, marks=() if version == NEWEST else pytest.mark.soak) for version in VERSIONS],
    ids=lambda version: f"postgres{version or ''}",
)
def empty_postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Postgres database with nothing in it: on the newest server at hand, in the long tests on the others too."""
    version: int = request.param
    name = asyncio.run(create_database(version, migrated=False))
    yield named(server_url(version), name)
    asyncio.run(drop_database(name, version))
