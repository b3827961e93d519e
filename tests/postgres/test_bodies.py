"""What bodies of ctx.transaction do to their transaction, their connection and other transactions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg

from tests.postgres.hand import Desk, desk, until
from tests.postgres.server import connection_to
from zart_core import DurableScheduler, ExecutionFailed, TaskContext, TaskHandler, TaskRegistry, Worker

Body = Callable[[asyncpg.Connection], Awaitable[Any]]


class Pay(TaskHandler[None, Any]):
    """One transaction."""

    name = "pay"

    def __init__(self, body: Body, **options: Any) -> None:
        self.body = body
        self.options = options
        self.runs = 0

    async def run(self, ctx: TaskContext, data: None) -> Any:
        return await ctx.transaction("pay", self.pay, **self.options)

    async def pay(self, connection: asyncpg.Connection) -> Any:
        self.runs += 1
        return await self.body(connection)


async def outcome(d: Desk, handler: TaskHandler[None, Any]) -> Any:
    """The output of one execution; of one that fails, its error in words."""
    registry = TaskRegistry()
    registry.register(handler)
    scheduler: Any = d.scheduler
    async with Worker(scheduler, registry):
        handle = await DurableScheduler(scheduler).start(handler.name, None)
        try:
            return await handle.result("30s")
        except ExecutionFailed as error:
            return str(error.failure.error)


async def prepare(d: Desk) -> None:
    await d.sql.execute(
        "DROP TABLE IF EXISTS public.paid; CREATE TABLE public.paid (k integer PRIMARY KEY, v integer); "
        "INSERT INTO public.paid VALUES (1, 0), (2, 0)"
    )


@contextlib.asynccontextmanager
async def isolation(d: Desk, level: str) -> AsyncIterator[None]:
    """The default of the database, for connections that are made in the block."""
    name = await d.value("SELECT current_database()")
    await d.sql.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    try:
        yield
    finally:
        await d.sql.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")


# --- conflicts with other transactions ----------------------------------------------------------------------------------------


async def test_a_body_that_is_the_victim_of_a_deadlock_is_run_again() -> None:  # B61
    async with desk() as d, connection_to(d.url) as rival:
        await prepare(d)
        met, deadlock = asyncio.Event(), asyncio.Event()

        async def body(connection: asyncpg.Connection) -> str:
            await connection.execute("SET LOCAL deadlock_timeout = '10ms'")
            await connection.execute("UPDATE public.paid SET v = v + 1 WHERE k = 1")
            met.set()
            await deadlock.wait()
            await connection.execute("UPDATE public.paid SET v = v + 1 WHERE k = 2")
            return "paid"

        handler = Pay(body)
        paying = asyncio.create_task(outcome(d, handler))
        # The rival's turn to look for a deadlock comes late, so the body is the victim.
        await rival.execute("SET deadlock_timeout = '60s'")
        async with rival.transaction():
            await rival.execute("UPDATE public.paid SET v = 100 WHERE k = 2")
            await met.wait()
            update = asyncio.create_task(rival.execute("UPDATE public.paid SET v = 100 WHERE k = 1"))
            await d.blocked()
            deadlock.set()
            await update
        assert await paying == "paid"
        assert handler.runs == 2
        assert await d.sql.fetch("SELECT v FROM public.paid ORDER BY k") == [(101,), (101,)]


async def test_a_body_whose_snapshot_is_out_of_date_is_run_again() -> None:  # B61
    async with desk() as d:
        await prepare(d)

        async def body(connection: asyncpg.Connection) -> int:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            await connection.fetchval("SELECT count(*) FROM public.paid")
            if handler.runs == 1:
                await d.sql.execute("UPDATE public.paid SET v = 7 WHERE k = 1")
            await connection.execute("UPDATE public.paid SET v = v + 1 WHERE k = 1")
            return int(await connection.fetchval("SELECT v FROM public.paid WHERE k = 1"))

        handler = Pay(body)
        assert await outcome(d, handler) == 8
        assert handler.runs == 2


async def test_a_conflict_that_a_body_tells_in_words_of_its_own_is_one_too() -> None:  # B61
    async with desk() as d:
        await prepare(d)

        async def body(connection: asyncpg.Connection) -> int:
            try:
                if handler.runs == 1:
                    raise asyncpg.SerializationError("could not serialize access")
            except asyncpg.PostgresError as error:
                raise RuntimeError("the repository failed") from error
            return handler.runs

        handler = Pay(body)
        assert await outcome(d, handler) == 2


async def test_a_conflict_that_does_not_end_fails_the_step() -> None:  # B61
    async with desk() as d:
        await prepare(d)

        async def body(connection: asyncpg.Connection) -> None:
            raise asyncpg.DeadlockDetectedError("deadlock detected")

        handler = Pay(body)
        assert "deadlock detected" in await outcome(d, handler)
        assert handler.runs == 7


async def test_a_body_that_hides_a_failed_statement_is_told_why_nothing_can_follow() -> None:  # B54
    async with desk() as d:
        await prepare(d)

        async def body(connection: asyncpg.Connection) -> str:
            with contextlib.suppress(asyncpg.UniqueViolationError):
                await connection.execute("INSERT INTO public.paid VALUES (1, 1)")
            return "already there"

        handler = Pay(body)
        assert "went on after one of its statements had failed" in await outcome(d, handler)
        assert handler.runs == 1


# --- time ---------------------------------------------------------------------------------------------------------------------


async def test_a_statement_that_is_cut_off_by_its_step_ends_on_the_server_too() -> None:  # B49
    async with desk() as d:
        await prepare(d)

        async def body(connection: asyncpg.Connection) -> None:
            await connection.execute("UPDATE public.paid SET v = 1 WHERE k = 1")
            await connection.execute("SELECT pg_sleep(60)")

        assert "did not finish" in await outcome(d, Pay(body, timeout="100ms"))

        async def ended() -> bool:
            return not await d.value(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
            )

        await until(ended, limit=5)
        async with asyncio.timeout(5):
            await d.sql.execute("UPDATE public.paid SET v = 2 WHERE k = 1")


async def test_closing_waits_for_connections_whose_statement_was_cut_off() -> None:  # B77
    async with desk() as d:
        await prepare(d)

        async def body(connection: asyncpg.Connection) -> None:
            await connection.execute("SELECT pg_sleep(60)")

        await outcome(d, Pay(body, timeout="50ms"))
        await d.scheduler.close()
        assert not await d.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zart transaction' AND datname = current_database()"
        )


async def test_a_statement_of_a_body_may_take_longer_than_ours() -> None:  # B49
    async with desk(command_timeout="500ms") as d:

        async def body(connection: asyncpg.Connection) -> str:
            await connection.execute("SELECT pg_sleep(1)")
            return "late"

        assert await outcome(d, Pay(body)) == "late"


# --- what a body finds --------------------------------------------------------------------------------------------------------


async def test_a_body_begins_read_committed_whatever_the_databases_default_is() -> None:  # B54
    async with desk() as d, isolation(d, "serializable"):

        async def body(connection: asyncpg.Connection) -> str:
            return str(await connection.fetchval("SHOW transaction_isolation"))

        assert await outcome(d, Pay(body)) == "read committed"


async def test_our_own_statements_are_read_committed_whatever_the_databases_default_is() -> None:  # B9
    async with desk() as d, isolation(d, "repeatable read"):
        await d.end_connections("client")
        calls = await d.scheduler._use()
        for lane in (calls.client, calls.flush, calls.claim):
            [row] = await lane.run(lambda db: db.rows("SHOW transaction_isolation"), repeatable=True)
            assert row[0] == "read committed"


async def test_codecs_that_a_body_sets_are_not_there_for_the_next() -> None:  # B54
    class Two(TaskHandler[None, str]):
        name = "two"

        async def run(self, ctx: TaskContext, data: None) -> str:
            await ctx.transaction("first", self.first)
            return await ctx.transaction("second", self.second)

        async def first(self, connection: asyncpg.Connection) -> None:
            await connection.set_type_codec("json", encoder=str, decoder=lambda text: "decoded", schema="pg_catalog")  # type: ignore[no-untyped-call]

        async def second(self, connection: asyncpg.Connection) -> str:
            return str(await connection.fetchval("SELECT '{}'::json"))

    async with desk(pool_size=1) as d:
        assert await outcome(d, Two()) == "{}"
