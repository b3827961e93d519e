"""Hearing of what other processes do: by notifications where they come through, by asking in any case."""

from __future__ import annotations

import asyncio
import logging
from unittest import mock

import pytest

from tests.postgres.hand import Desk, desk, until
from tests.postgres.server import connection_to
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_core.records import Notification, Offer
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import finish, suspend
from zart_postgres import PostgresScheduler, listener
from zart_postgres.connections import Connections
from zart_postgres.herald import Note, rest_after, written
from zart_postgres.notices import ANYTHING, Happened


class Ears:
    """What a scheduler's listeners hear."""

    def __init__(self, scheduler: PostgresScheduler) -> None:
        self.heard: list[Notification] = []
        self.scheduler = scheduler
        self.end = scheduler.subscribe(self.heard.append)

    async def ready(self) -> None:
        """Return when the server tells; what was heard so far is forgotten."""
        calls = await self.scheduler._use()
        await asyncio.wait_for(calls.listener.listening.wait(), 20)
        await asyncio.sleep(0)  # what is told when listening begins
        self.heard.clear()

    async def hear(self) -> Notification:
        async def anything() -> bool:
            return bool(self.heard)

        await until(anything)
        return self.heard.pop(0)


async def _elsewhere(d: Desk) -> tuple[PostgresScheduler, Ears]:
    other = PostgresScheduler(d.url)
    await other.open()
    ears = Ears(other)
    await ears.ready()
    return other, ears


async def test_another_process_hears_of_work_of_signals_and_of_ends() -> None:
    async with desk() as d:
        other, ears = await _elsewhere(d)
        async with other:
            hand = await d.hand()
            await d.scheduler.start([new("a")])
            assert (await ears.hear()).ready
            run = await hand.take("a")
            await d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""))
            assert (await ears.hear()).signals == {run.run_id}
            await hand.record(finish(run))
            assert (await ears.hear()).finished == {"a"}


async def test_what_happens_here_is_told_here_at_once_and_once() -> None:
    async with desk() as d:
        ears = Ears(d.scheduler)
        await ears.ready()
        await d.scheduler.start([new("a")])
        assert [notice.ready for notice in ears.heard] == [True]
        # Ours comes back from the server too, and is known as ours; then that of another.
        async with PostgresScheduler(d.url) as other:
            await until(lambda: _sent(d.scheduler))
            await other.cancel("a", None)
            await until(lambda: _is(any("a" in (notice.finished or ()) for notice in ears.heard)))
        assert [notice.ready for notice in ears.heard].count(True) == 1


async def _sent(scheduler: PostgresScheduler) -> bool:
    return (await scheduler._use()).herald.sent > 0


async def _is(condition: bool) -> bool:
    return condition


async def test_many_commits_are_told_by_few_notifications() -> None:
    async with desk() as d:
        other, ears = await _elsewhere(d)
        async with other:
            await asyncio.gather(*(d.scheduler.start([new(f"a-{n}")]) for n in range(100)))
            calls = await d.scheduler._use()
            assert calls.herald.sent < 50
            assert (await ears.hear()).ready


@pytest.mark.parametrize(("told", "seconds"), [(1, 0.001), (7, 0.007), (500, 0.02)])
def test_a_notification_is_followed_by_the_longer_a_rest_the_more_it_tells(told: int, seconds: float) -> None:
    assert rest_after(told) == seconds


async def test_a_scheduler_that_closes_still_tells_of_its_last_commit() -> None:
    async with desk() as d:
        other, ears = await _elsewhere(d)
        async with other:
            async with PostgresScheduler(d.url) as brief:
                await brief.start([new("a"), new("b")])
                await brief.start([new("c")])
            assert (await ears.hear()).ready


async def test_the_commit_of_a_callers_transaction_tells_everybody_and_a_rollback_nobody() -> None:  # B6
    async with desk() as d, connection_to(d.url) as tx:
        hand = await d.hand()
        waits, busy = await d.running(hand, "waits", "busy")
        await hand.record(suspend(waits, on_signal=True))
        # What it tells of this is no concern of those who listen from now on.
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "zart-postgres-herald"))
        here = Ears(d.scheduler)
        await here.ready()
        other, elsewhere = await _elsewhere(d)
        async with other:
            rolled_back = tx.transaction()
            await rolled_back.start()
            await d.scheduler.start([new("never")], tx)
            await rolled_back.rollback()

            def news(execution_id: str) -> Offer:
                return Offer(execution_id=execution_id, name="news", payload=b"")

            for doing, told in (
                (lambda: d.scheduler.offer_event(news("busy"), tx), Happened(signals=[busy.run_id])),
                (lambda: d.scheduler.offer_event(news("waits"), tx), Happened(ready=True)),
                (lambda: d.scheduler.start([new("a")], tx), Happened(ready=True)),
                (lambda: d.scheduler.start([new("a")], tx), None),
                (lambda: d.scheduler.offer_event(news("busy"), tx), Happened(signals=[busy.run_id])),
            ):
                async with tx.transaction():
                    await doing()
                    assert (here.heard, elsewhere.heard) == ([], [])
                if told is not None:
                    assert await here.hear() == await elsewhere.hear() == told.notification()
            assert (here.heard, elsewhere.heard) == ([], [])
        await hand.record(finish(busy))


def test_what_does_not_fit_is_told_as_anything() -> None:
    happened = Happened(ready=True, finished=[f"execution-{n}" for n in range(2_000)])
    text = written("me", happened)
    assert len(text) < 8_000
    note = listener._decode(text)
    assert note == Note("me", ready=True, signals=[], finished=None)
    small = listener._decode(written("me", Happened(signals=[7])))
    assert small.notification() == Notification(ready=False, signals=frozenset((7,)), finished=frozenset())


async def test_listening_goes_on_after_its_connection_was_ended() -> None:
    async with desk() as d:
        other, ears = await _elsewhere(d)
        async with other:
            calls = await other._use()
            connections = calls.listener.connections
            assert await d.end_connections("listen") == 1
            await until(lambda: _is(calls.listener.connections > connections))
            # What happened in between was told to nobody, so anything may have.
            await until(lambda: _is(ANYTHING in ears.heard))
            ears.heard.clear()
            await d.scheduler.start([new("a")])
            assert (await ears.hear()).ready


async def test_where_notifications_do_not_come_through_it_says_so_and_stops(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as d:
        # A pooler in transaction mode: the LISTEN is taken, and nothing is ever heard.
        with mock.patch.object(listener, "_ECHO", 0.05), mock.patch.object(listener.Listener, "_heard", _swallow):
            async with PostgresScheduler(d.url) as other:
                with caplog.at_level(logging.WARNING, logger="zart"):
                    other.subscribe(lambda _: None)
                    calls = await other._use()
                    await until(lambda: _is(_listening(calls) is not None and _listening(calls).done()))
        assert "polling" in caplog.text
        assert "listen_url" in caplog.text
        await until(lambda: _no_listeners(d))


async def _listeners(d: Desk) -> int:
    count: int = await d.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zart listen' AND datname = current_database()"
    )
    return count


async def _no_listeners(d: Desk) -> bool:
    return await _listeners(d) == 0


def _swallow(self: object, *told: object) -> None:
    pass


def _listening(calls: Connections) -> asyncio.Task[None]:
    task = calls._listening
    assert task is not None
    return task


async def test_behind_a_pooler_nothing_listens_unless_it_is_shown_the_way() -> None:
    async with desk() as d:
        for options, expected in (({}, 0), ({"listen_url": d.url}, 1)):
            async with PostgresScheduler(d.url, pooler=True, **options) as other:
                ears = Ears(other)
                if expected:
                    await ears.ready()
                assert await _listeners(d) == expected
                hand = await d.hand(other)
                await other.start([new(f"a-{expected}")])
                await hand.record(*(finish(run) for run in await hand.claim()))


class Echo(TaskHandler[int, int]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: int) -> int:
        return data


async def test_a_worker_elsewhere_begins_and_its_result_is_heard_long_before_any_poll() -> None:
    registry = TaskRegistry()
    registry.register(Echo())
    async with desk() as d, PostgresScheduler(d.url) as there:
        async with Worker(there, registry, WorkerConfig(poll_interval="60s", lease="60s")):
            await asyncio.wait_for((await there._use()).listener.listening.wait(), 20)
            client = DurableScheduler(d.scheduler)
            for n in range(5):
                assert await (await client.start(Echo, n)).result("15s") == n


async def test_what_a_caller_committed_begins_long_before_any_poll() -> None:  # B6
    registry = TaskRegistry()
    registry.register(Echo())
    async with desk() as d, PostgresScheduler(d.url) as there, connection_to(d.url) as tx:
        async with Worker(there, registry, WorkerConfig(poll_interval="60s", lease="60s")):
            await asyncio.wait_for((await there._use()).listener.listening.wait(), 20)
            async with tx.transaction():
                handle = await DurableScheduler(d.scheduler).start(Echo, 1, tx=tx)
            assert await handle.result("15s") == 1


async def test_without_any_notification_polling_finds_everything() -> None:
    registry = TaskRegistry()
    registry.register(Echo())
    async with desk(pooler=True) as d, PostgresScheduler(d.url, pooler=True) as there:
        async with Worker(there, registry, WorkerConfig(poll_interval="50ms")):
            handle = await DurableScheduler(d.scheduler).start(Echo, 1)
            assert await handle.result("15s") == 1
