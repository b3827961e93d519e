"""What a server that goes away does to calls, and what it does not do."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import warnings

import pytest

from tests.postgres.hand import desk
from tests.postgres.server import create_database, drop_database, named, server_url
from zart_core.errors import BackendUnavailable
from zart_core.records import Flushed, Offer
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import completed, finish
from zart_postgres import PostgresScheduler


async def test_nobody_notices_that_idle_connections_were_ended() -> None:  # B61
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(completed(run, "x"))
        for duty in ("client", "claim", "flush", "lease"):
            assert await d.end_connections(duty) >= 1
            # Their end is news for the event loop before it is asked for the next call, or is met by the call itself.
            await asyncio.sleep(0.05)
        await hand.heartbeat()
        assert await hand.claim() == []
        await hand.record(completed(run, "y"))
        await d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""))
        row = await d.scheduler.get("a")
        assert row is not None
        assert row.status == "running"
        await hand.record(finish(run))


async def test_a_read_whose_connection_breaks_is_done_again() -> None:  # B61
    async with desk(pool_size=1) as d:
        await d.scheduler.start([new("a")])
        async with d.sql.transaction():
            await d.sql.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
            reading = asyncio.create_task(d.scheduler.get("a"))
            await d.blocked()
            assert await d.end_connections("client") == 1
            await d.blocked()
        assert await reading is not None


async def test_a_write_whose_connection_breaks_is_unknown_and_may_be_repeated() -> None:  # B61
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        async with d.sql.transaction():
            await d.sql.execute("SELECT 1 FROM active FOR UPDATE")
            writing = asyncio.create_task(hand.flush(completed(run, "x")))
            await d.blocked()
            assert await d.end_connections("flush") == 1
            with pytest.raises(BackendUnavailable):
                await writing
        assert await hand.flush(completed(run, "x")) == Flushed()
        await hand.record(finish(run))


async def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    async with desk(command_timeout="200ms") as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        async with d.sql.transaction():
            await d.sql.execute("SELECT 1 FROM active FOR UPDATE")
            began = time.monotonic()
            with pytest.raises(BackendUnavailable, match="did not answer in time"):
                await hand.flush(completed(run, "x"))
            assert time.monotonic() - began < 5
        await hand.record(finish(run))


async def test_a_heartbeat_is_given_up_within_a_third_of_the_lease() -> None:  # B57
    async with desk() as d:
        hand = await d.hand(lease=3_000_000)
        async with d.sql.transaction():
            await d.sql.execute("SELECT 1 FROM workers FOR UPDATE")
            began = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await hand.heartbeat()
            assert time.monotonic() - began < 2.9
        await hand.heartbeat()


async def test_a_blocked_flush_does_not_hold_up_heartbeats_claims_or_clients() -> None:  # B57
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        async with d.sql.transaction():
            await d.sql.execute("SELECT 1 FROM active FOR UPDATE")
            writing = asyncio.create_task(hand.flush(completed(run, "x")))
            await d.blocked()
            await hand.heartbeat()
            assert await hand.claim() == []
            await d.scheduler.start([new("b")])
            assert not writing.done()
        assert await writing == Flushed()


async def test_where_nobody_listens_it_says_which_server_and_no_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        scheduler = PostgresScheduler(f"postgresql://me:s3cret@127.0.0.1:{port}/app")
        with pytest.raises(BackendUnavailable, match=f"127.0.0.1:{port}/app") as refusal:
            await scheduler.open()
    assert "s3cret" not in str(refusal.value)
    assert not scheduler.is_open


async def test_an_unknown_database_is_said_to_be_unavailable() -> None:
    async with desk() as d:
        with pytest.raises(BackendUnavailable, match="does not exist"):
            await PostgresScheduler(d.url.replace("zart_test_", "zart_none_")).open()


async def test_more_calls_than_connections_wait_for_their_turn() -> None:
    async with desk(pool_size=2) as d:
        await asyncio.gather(*(d.scheduler.start([new(f"a-{n}")]) for n in range(50)))
        ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zart client' AND datname = current_database()"
        assert await d.value(ours) <= 2
        assert await d.value("SELECT count(*) FROM runs") == 50


async def test_a_closed_scheduler_leaves_no_connection() -> None:  # B77
    async with desk() as d:
        async with PostgresScheduler(d.url) as other:
            hand = await d.hand(other)
            other.subscribe(lambda _: None)
            [run] = await d.running(hand, "a")
            await hand.record(finish(run))
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'zart %' AND datname = current_database() "
            "AND application_name NOT IN ('zart client', 'zart news')"
        )
        assert await d.value(others) == 0


def test_a_scheduler_whose_loop_was_closed_opens_on_the_next() -> None:
    # Its connections are lost with the loop that they lived on, without a word from us; no socket is left to the collector.
    name = asyncio.run(create_database())
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            scheduler = PostgresScheduler(named(server_url(), name))
            asyncio.run(_start(scheduler, "a"))
            assert asyncio.run(_start(scheduler, "b"))
            asyncio.run(scheduler.close())
            gc.collect()
        assert [
            str(warning.message)
            for warning in warned
            if "PGSQL" in str(warning.message) or "transport" in str(warning.message)
        ] == []
    finally:
        asyncio.run(drop_database(name))


async def _start(scheduler: PostgresScheduler, execution_id: str) -> bool:
    return (await scheduler.start([new(execution_id)]))[0].created
