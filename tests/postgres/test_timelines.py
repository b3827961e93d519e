"""What a worker may still write after a standby has been promoted that lacks what the worker remembers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock
from urllib.parse import urlsplit

import pytest

from tests.postgres.hand import TASK, Desk, desk, until
from tests.postgres.replication import Replication, connected, replication
from tests.postgres.server import FOREIGN, connection_to, fresh_database, server_of_ones_own
from zart_core.errors import BackendUnavailable, LeaseLost
from zart_core.records import StepRow, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import Hand, completed, step_row
from zart_postgres import PostgresScheduler
from zart_postgres.hosts import one_by_one
from zart_postgres.timeline import Timeline, moment

T = TypeVar("T")
DB = "postgresql://me@db1:5432,db2:5433/app?target_session_attrs=read-write"


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Replication, PostgresScheduler]]:
    """A primary with our tables and a standby, and an open scheduler that finds whichever takes writes."""
    async with replication() as both, PostgresScheduler(both.url, auto_migrate=True) as scheduler:
        yield both, scheduler


async def hand_of(scheduler: PostgresScheduler) -> Hand:
    info = WorkerInfo(name="worker", host="here", pid=1, tasks=("task",), queues=("default",))
    worker_id = await reached(lambda: scheduler.register(info, LONG))
    return Hand(scheduler, worker_id, name="worker", lease=LONG, tasks=(TASK,), queues=("default",))


async def reached(call: Callable[[], Awaitable[T]]) -> T:
    """What a call answers once the server can be reached."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(BackendUnavailable):
                return await call()
            await asyncio.sleep(0.01)


async def test_no_step_is_recorded_after_one_that_the_new_primary_has_lost() -> None:  # B58
    async with pair() as (both, scheduler):
        hand = await hand_of(scheduler)
        await scheduler.start([new("a")])
        run = await hand.take("a")
        await hand.record(completed(run, "kept"))
        await both.caught_up()
        await both.cut_off()
        await hand.record(completed(run, "lost"))
        await both.fail_over()
        # The standby knows the worker, its lease and the run's epoch: by these alone, the step would be taken.
        with pytest.raises(LeaseLost):
            await reached(lambda: hand.flush(completed(run, "after")))
        # Nor is it told anything of runs that may not be its own: they are lost.
        assert [told.lost for told in await reached(lambda: hand.signals(run))] == [True]
        for call in (hand.heartbeat, hand.claim, lambda: scheduler.release(hand.worker_id, [])):
            with pytest.raises(LeaseLost):
                await reached(call)
        ran: list[Any] = []

        async def body(connection: Any) -> StepRow:
            ran.append(connection)
            return step_row("paid")

        assert await reached(lambda: scheduler.transact(hand.key(run, "paid"), body)) is None
        assert ran == []
        # It gives its runs back at once, and they are loaded as they are here.
        await scheduler.deregister(hand.worker_id)
        heir = await hand_of(scheduler)
        assert [row.name for row in (await heir.take("a")).steps] == ["kept"]
        assert await scheduler.audit() == []


async def test_an_id_that_the_new_primary_gives_out_again_is_the_new_workers_alone() -> None:  # B58
    async with pair() as (both, scheduler):
        await both.caught_up()
        await both.cut_off()
        # More than a sequence writes to the log ahead of its use.
        lost = [await hand_of(scheduler) for _ in range(80)]
        await both.fail_over()
        async with PostgresScheduler(both.url) as others:
            others_ids = {(await hand_of(others)).worker_id for _ in range(5)}
            assert others_ids & {hand.worker_id for hand in lost}, "no id has been given out again"
            for hand in lost[:60]:
                with pytest.raises(LeaseLost):
                    await reached(hand.heartbeat)
                if hand.worker_id in others_ids:
                    await scheduler.deregister(hand.worker_id)  # nobody's business but its owner's
            for worker_id in others_ids:
                await others.heartbeat(worker_id, LONG)
            # Nor does a scheduler take for a new worker what one of its own still goes by.
            heir = await hand_of(scheduler)
            assert heir.worker_id not in {hand.worker_id for hand in lost[60:]}
            await heir.heartbeat()


async def test_a_standby_is_read_and_takes_no_worker_until_it_is_promoted() -> None:
    async with pair() as (both, primary):
        await primary.start([new("a")])
        await both.caught_up()
        async with PostgresScheduler(both.standby.url) as scheduler:
            assert await scheduler.get("a") is not None
            info = WorkerInfo(name="worker", host="here", pid=1, tasks=("task",), queues=("default",))
            with pytest.raises(BackendUnavailable, match="this server is a standby"):
                await scheduler.register(info, LONG)
            await both.fail_over()
            # A connection made before the promotion knows nothing of the timeline, and is made anew.
            hand = await hand_of(scheduler)
            await hand.record(completed(await hand.take("a"), "x"))


@pytest.mark.parametrize(("synchronous_commit", "forgets"), [("on", False), ("off", True)])
async def test_a_crash_ends_the_lease_of_workers_only_where_commits_are_not_waited_for(
    synchronous_commit: str, forgets: bool
) -> None:  # B58, B61
    with server_of_ones_own() as (url, crash):
        async with connected(url) as connection:
            await connection.execute(f"ALTER ROLE postgres SET synchronous_commit = {synchronous_commit}")
        async with PostgresScheduler(url, auto_migrate=True) as scheduler:
            hand = await hand_of(scheduler)
            async with connected(url) as connection:
                await connection.execute("CHECKPOINT")  # at least the worker itself is not forgotten
            await asyncio.to_thread(crash)
            if forgets:
                with pytest.raises(LeaseLost):
                    await reached(hand.heartbeat)
            else:
                await reached(hand.heartbeat)


@pytest.mark.skipif(FOREIGN is not None, reason="the server of the environment may be on any host")
async def test_a_first_host_that_is_silent_is_waited_for_once_and_does_not_use_up_the_time_of_the_second() -> (
    None
):  # B61
    asked: list[asyncio.StreamWriter] = []
    async with desk() as d:
        silent = await asyncio.start_server(lambda _, writer: asked.append(writer), "127.0.0.1")
        port = silent.sockets[0].getsockname()[1]
        hosts = f"host=127.0.0.1,{d.url.partition('host=')[2]}&port={port},5432"
        several = f"postgresql://postgres@/{urlsplit(d.url).path[1:]}?{hosts}&target_session_attrs=read-write"
        async with PostgresScheduler(several, connect_timeout="2s") as scheduler:
            hand = await hand_of(scheduler)
            await hand.heartbeat()
            assert await hand.claim() == []
        assert len(asked) == 1
        for writer in asked:
            writer.close()
        silent.close()
        await silent.wait_closed()


async def test_behind_a_pooler_the_timeline_is_asked_for_before_each_write() -> None:  # B58, B64
    # A pooler's connection outlives the server: here, what the server says of itself changes under it.
    async with desk(pooler=True) as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        with told_of(Timeline("another")):
            for call in (hand.heartbeat, hand.claim, lambda: hand.flush(completed(run, "x"))):
                with pytest.raises(LeaseLost):
                    await call()
            assert await d.scheduler.transact(hand.key(run, "x"), mock.AsyncMock()) is None


async def test_behind_a_pooler_a_transaction_asks_again_inside_itself() -> None:  # B54, B64
    async with desk(pooler=True) as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        registration = d.scheduler._timelines.of(hand.worker_id)
        assert registration is not None
        body = mock.AsyncMock()
        answers = [replace(registration.timeline, asked=moment()), Timeline("another", asked=moment())]
        with mock.patch("zart_postgres.lanes.timeline_of", mock.AsyncMock(side_effect=answers)):
            assert await d.scheduler.transact(hand.key(run, "x"), body) is None
        body.assert_not_awaited()


async def test_a_standby_does_not_hide_what_is_wrong_with_the_primary() -> None:  # B61
    async with replication() as both:
        await both.kill()
        for hosts in ([both.primary, both.standby], [both.standby, both.primary]):
            folders = ",".join(f"{server.folder}" for server in hosts)
            url = f"postgresql://postgres@/postgres?host={folders}&target_session_attrs=read-write"
            with pytest.raises(BackendUnavailable) as refused:
                await PostgresScheduler(url).open()
            assert isinstance(refused.value.__cause__, OSError), refused.value


async def test_behind_a_pooler_a_worker_registers_on_the_timeline_that_is_there_then() -> None:  # B58, B64
    async with desk(pooler=True) as d:
        await (await d.hand()).heartbeat()
        # The pooler leads to another server now, by connections that were made before.
        with told_of(Timeline("another")):
            hand = await d.hand()
            [run] = await d.running(hand, "a")
            await hand.record(completed(run, "x"))
            await hand.heartbeat()


async def test_a_worker_is_not_lost_when_a_connection_waits_for_commits_and_another_does_not() -> None:  # B61
    async with waiting_for_commits() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(completed(run, "x"))
        await d.sql.execute(f"ALTER DATABASE {await d.value('SELECT current_database()')} SET synchronous_commit = off")
        assert await d.end_connections("flush") == 1
        await reached(lambda: hand.record(completed(run, "y")))
        await hand.heartbeat()


async def test_a_connection_to_a_server_that_its_worker_has_left_is_replaced() -> None:  # B61
    async with desk() as d:
        [run] = await d.running(early := await d.hand(), "a")
        await early.record(completed(run, "x"))
        # As after a failover that the worker has heard of by its other connections; this one has seen nothing of it.
        hand = await d.hand()
        with on_another_timeline(d, hand):
            with pytest.raises(BackendUnavailable, match="that this worker has left"):
                await hand.flush()
            # A new one is younger than the worker: what it shows is where the database is now.
            with pytest.raises(LeaseLost):
                await hand.flush()


async def test_what_a_release_has_left_is_not_freed_on_another_timeline() -> None:  # B58
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        async with connected(d.url) as user:
            locked = user.transaction()
            await locked.start()
            await user.execute("SELECT 1 FROM zart.active FOR NO KEY UPDATE")
            assert await hand.release() == 0
            with on_another_timeline(d, hand):
                await locked.rollback()

                async def given_up() -> bool:
                    tasks = asyncio.all_tasks()
                    return not any("_release_left" in repr(task.get_coro()) for task in tasks)

                await until(given_up)
        assert await d.value("SELECT worker_id FROM active WHERE run_id = $1", run.run_id) == hand.worker_id


async def test_only_the_worker_that_has_registered_then_is_deregistered() -> None:  # B58
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        # The database was put back, and has given the id to another worker.
        await d.sql.execute("UPDATE workers SET registered_at = registered_at + 1")
        await d.scheduler.deregister(hand.worker_id)
        assert await d.value("SELECT worker_id FROM active WHERE run_id = $1", run.run_id) == hand.worker_id


async def test_that_a_server_does_not_tell_its_timeline_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with fresh_database() as url, connection_to(url) as sql:
        role = "zart_" + url.partition("zart_test_")[2][:16]
        await sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            await sql.execute(f"GRANT ALL ON SCHEMA zart TO {role}")
            await sql.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA zart TO {role}")
            await sql.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA zart TO {role}")
            await sql.execute("REVOKE EXECUTE ON FUNCTION pg_control_system FROM PUBLIC")
            async with PostgresScheduler(url.replace("://postgres", f"://{role}", 1)) as scheduler:
                # All goes on, without this fence.
                [run] = await Desk(url, scheduler, sql).running(hand := await hand_of(scheduler), "a")
                await hand.record(completed(run, "x"))
                await hand_of(scheduler)
                # Nor is the permission, once given, mistaken for another timeline.
                await sql.execute("GRANT EXECUTE ON FUNCTION pg_control_system TO PUBLIC")
                await Desk(url, scheduler, sql).end_connections("flush")
                await reached(lambda: hand.record(completed(run, "y")))
        finally:
            await sql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    [said] = [record.getMessage() for record in caplog.records if "timeline" in record.getMessage()]
    assert "permission denied for function pg_control_system" in said


def told_of(timeline: Timeline) -> Any:
    """Behind a pooler: whoever asks a server for its timeline is told of this one."""

    async def answer(*_: object) -> Timeline:
        return replace(timeline, asked=moment())

    return mock.patch("zart_postgres.lanes.timeline_of", answer)


@contextlib.contextmanager
def on_another_timeline(d: Desk, hand: Hand) -> Iterator[None]:
    """The worker has registered with another server than all connections lead to that are made, or were."""
    registration = d.scheduler._timelines.of(hand.worker_id)
    assert registration is not None
    with mock.patch.object(registration, "timeline", Timeline("another")):
        yield


@asynccontextmanager
async def waiting_for_commits() -> AsyncIterator[Desk]:
    """A desk whose commits are waited for, unlike those of other tests."""
    async with fresh_database() as url, connection_to(url) as sql:
        await sql.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} SET synchronous_commit = on")
        async with PostgresScheduler(url) as scheduler:
            yield Desk(url, scheduler, sql)


@pytest.mark.parametrize(
    ("url", "each"),
    [
        ("postgresql://db/app", ["postgresql://db/app"]),
        (
            DB,
            [
                "postgresql://me@db1:5432/app?target_session_attrs=read-write",
                "postgresql://me@db2:5433/app?target_session_attrs=read-write",
            ],
        ),
        (
            "postgresql://me@/app?host=db1,db2&port=1,2",
            ["postgresql://me@/app?host=db1&port=1", "postgresql://me@/app?host=db2&port=2"],
        ),
        (
            "postgresql://db1,db2/app?port=7",
            ["postgresql://db1/app?port=7", "postgresql://db2/app?port=7"],
        ),
        (
            "postgresql://db1,db2/app?target_session_attrs=prefer-standby",
            ["postgresql://db1,db2/app?target_session_attrs=prefer-standby"],
        ),
    ],
)
def test_each_host_of_a_url_has_a_url_of_its_own(url: str, each: list[str]) -> None:
    assert list(one_by_one(url)) == each
