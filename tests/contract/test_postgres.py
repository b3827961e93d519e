"""The contract on Postgres, several schedulers open on one database at once, by the server's clock."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from tests.postgres.keeper import audit_of, keeper
from tests.postgres.server import VERSIONS, connection_to, database
from zart_core.testing.contract import Backend, SchedulerContract
from zart_postgres import PostgresScheduler


class PostgresDatabase(Backend):
    def __init__(self, url: str) -> None:
        self.url = url

    def scheduler(self) -> PostgresScheduler:
        return PostgresScheduler(self.url)

    async def audit(self) -> list[str]:
        return await audit_of(self.url)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with connection_to(self.url) as connection:
            yield connection


class OnPostgres(SchedulerContract):
    version: ClassVar[int]

    @classmethod
    def setup_class(cls) -> None:
        keeper()  # before the first test, which counts its threads

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        async with database(self.version) as url:
            yield PostgresDatabase(url)


@pytest.mark.oldest
@pytest.mark.skipif(len(VERSIONS) == 1, reason="there is one server only")
class TestOldestPostgres(OnPostgres):
    version = VERSIONS[0]


class TestNewestPostgres(OnPostgres):
    version = VERSIONS[-1]
