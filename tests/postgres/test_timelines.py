"""What a worker may still write after a standby has been promoted that lacks what the worker remembers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from unittest import mock
from urllib.parse import urlsplit

import pytest

from tests.postgres.hand import TASK, desk
from tests.postgres.replication import Replication, connected, replication
from tests.postgres.server import FOREIGN, server_of_ones_own
from zart_core.errors import BackendUnavailable, LeaseLost
from zart_core.records import StepRow, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import Hand, completed, step_row
from zart_postgres import PostgresScheduler
from zart_postgres.hosts import one_by_one

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
        async with PostgresScheduler(several, connect_timeout="300ms") as scheduler:
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
        with mock.patch("zart_postgres.lanes.timeline_of", mock.AsyncMock(return_value="another")):
            for call in (hand.heartbeat, hand.claim, lambda: hand.flush(completed(run, "x"))):
                with pytest.raises(LeaseLost):
                    await call()
            assert await d.scheduler.transact(hand.key(run, "x"), mock.AsyncMock()) is None


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
