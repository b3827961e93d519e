"""What a user's open transaction holds up: the runs that it has locked, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from tests.postgres.hand import TASK, Desk, desk, until
from tests.postgres.server import connection_to
from tests.postgres.test_races import holding
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_core.records import ClaimedRun, Flushed, NewPause, Offer, PauseFilter, QueueLimits, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import Fact, Hand, child, completed, finish, suspend, watch
from zart_core.testing.contract.succession import continued

SOON = 5.0
"""Seconds within which must be answered what does not wait: a wait would end with the test."""


@contextlib.asynccontextmanager
async def users_transaction(d: Desk, *execution_ids: str, starts: str | None = None) -> AsyncIterator[None]:
    """One that has offered an event to each of these executions, or has started one, and is open during the block."""
    async with connection_to(d.url) as sql, sql.transaction():
        for execution_id in execution_ids:
            await d.scheduler.offer_event(Offer(execution_id=execution_id, name="news", payload=b""), sql)
        if starts is not None:
            await d.scheduler.start([new(starts)], sql)
        yield


async def soon(flushing: asyncio.Task[Flushed]) -> Flushed:
    async with asyncio.timeout(SOON):
        return await flushing


def flushing(hand: Hand, *facts: Fact, patience: int = 0) -> asyncio.Task[Flushed]:
    return asyncio.create_task(hand.scheduler.flush(replace(hand.gather(*facts), patience=patience)))


async def two(d: Desk) -> tuple[Hand, ClaimedRun, ClaimedRun]:
    hand = await d.hand()
    a, b = await d.running(hand, "a", "b")
    return hand, a, b


async def names(d: Desk) -> list[str]:
    return [row[0] for row in await d.sql.fetch("SELECT name FROM steps ORDER BY name")]


# --- flushes --------------------------------------------------------------------------------------------------------------


async def test_a_flush_without_patience_writes_what_is_free_and_tells_what_is_not() -> None:
    async with desk() as d:
        hand, a, b = await two(d)
        async with users_transaction(d, "a"):
            assert await soon(flushing(hand, completed(a, "x"), completed(b, "y"))) == Flushed(
                busy=frozenset([a.run_id])
            )
            assert await names(d) == ["y"]
        assert await soon(flushing(hand, completed(a, "x"))) == Flushed()
        assert await names(d) == ["x", "y"]
        await hand.record(finish(a), finish(b))


async def test_a_flush_with_patience_waits_that_long_and_no_longer() -> None:
    async with desk() as d:
        hand, a, b = await two(d)
        async with users_transaction(d, "a"):
            first = flushing(hand, completed(a, "x"), completed(b, "y"), patience=100_000)
            assert (await soon(first)).busy == {a.run_id}
            second = flushing(hand, completed(a, "x"), patience=20_000_000)
            await d.blocked()
        assert await soon(second) == Flushed()
        assert await names(d) == ["x", "y"]
        await hand.record(finish(a), finish(b))


async def test_a_suspension_at_a_pause_waits_for_nobody() -> None:  # B68
    async with desk() as d:
        hand, a, b = await two(d)
        rule = await d.scheduler.pause(NewPause(nonce=1, step="s"))

        def held(run: ClaimedRun) -> Fact:
            return suspend(run, 0, held_by=rule, only_held=True)

        async with users_transaction(d, "a"):
            first = await soon(flushing(hand, completed(a, "x"), held(a), completed(b, "y"), held(b)))
            assert first == Flushed(busy=frozenset([a.run_id]))
            assert await names(d) == ["y"]
            # A run of which there is nothing else to be written.
            assert await soon(flushing(hand, held(a))) == Flushed(busy=frozenset([a.run_id]))
            assert (await soon(flushing(hand, held(a), patience=100_000))).busy == {a.run_id}
        assert await soon(flushing(hand, completed(a, "x"), held(a))) == Flushed()
        assert await d.scheduler.lift(PauseFilter(rule_id=rule)) == 1
        for run in await hand.claim():
            await hand.record(finish(run))


async def test_a_suspension_at_a_pause_does_not_wait_for_its_end() -> None:  # B68
    async with desk() as d:
        hand, a, b = await two(d)
        rule = await d.scheduler.pause(NewPause(nonce=1, step="s"))
        await hand.record(suspend(a, 0, held_by=rule, only_held=True))
        async with users_transaction(d, "a"):
            lifting = asyncio.create_task(d.scheduler.lift(PauseFilter(rule_id=rule)))  # waits for the user
            await d.blocked()
            held = suspend(b, 0, held_by=rule, only_held=True)
            assert await soon(flushing(hand, held)) == Flushed(busy=frozenset([b.run_id]))
        assert await lifting == 1
        assert await soon(flushing(hand, held)) == Flushed()
        for run in await hand.claim():  # at once: nobody would wake it for a rule that is gone
            await hand.record(finish(run))


async def test_a_claim_does_not_wait_for_the_end_of_a_pause() -> None:  # B68
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new("a"), new("b")])
        until = await d.value("SELECT now_v1()")
        for nonce, execution_id in enumerate(("a", "b")):
            await d.scheduler.pause(NewPause(nonce=nonce, execution_id=execution_id, expires_at=until))
        async with users_transaction(d, "a"):
            await d.scheduler.start([new("free")])
            before = d.scheduler.clock.now()
            async with asyncio.timeout(SOON):
                claimed = await hand.ask(100)
            assert {run.execution_id for run in claimed.runs} == {"b", "free"}
            # Not at once: that would be a loop of claims for as long as the user's transaction is open.
            assert claimed.next_wake is not None
            assert before + 100_000 <= claimed.next_wake <= d.scheduler.clock.latest() + 100_000
        again = await hand.ask(100)
        assert [run.execution_id for run in again.runs] == ["a"]
        for run in [*claimed.runs, *again.runs]:
            await hand.record(finish(run))


async def test_a_continuation_waits_for_nobody() -> None:  # B34
    async with desk() as d:
        hand, a, b = await two(d)
        async with users_transaction(d, "a"):
            both = flushing(hand, completed(a, "x"), continued(a), completed(b, "y"), continued(b))
            assert await soon(both) == Flushed(busy=frozenset([a.run_id]))
            assert await soon(flushing(hand, continued(a))) == Flushed(busy=frozenset([a.run_id]))
            assert (await soon(flushing(hand, continued(a), patience=100_000))).busy == {a.run_id}
        assert await soon(flushing(hand, completed(a, "x"), continued(a))) == Flushed()
        runs = await hand.claim()
        assert sorted((run.execution_id, run.run) for run in runs) == [("a", 2), ("b", 2)]
        for run in runs:
            await hand.record(finish(run))


async def test_a_run_that_is_not_held_any_more_is_lost_and_not_busy() -> None:  # B57
    async with desk() as d:
        hand, a, b = await two(d)
        await hand.record(suspend(a, on_signal=True), finish(b))
        async with users_transaction(d, "a"):
            lost = await soon(flushing(hand, completed(a, "x"), completed(b, "y")))
        assert lost == Flushed(lost=frozenset([a.run_id, b.run_id]))
        await hand.record(finish(await hand.take("a")))


async def test_a_child_whose_parent_is_locked_is_busy_with_its_end_alone() -> None:  # B36
    async with desk() as d:
        hand, a, b = await two(d)
        await hand.record(child(a, "call", new("c")), suspend(a, on_children=True))
        c = await hand.take("c")
        async with users_transaction(d, "a"):
            ends = await soon(flushing(hand, completed(c, "x"), finish(c), completed(b, "y")))
            assert ends == Flushed(busy=frozenset([c.run_id]))
            assert await names(d) == ["call", "y"], "all or nothing of a run"
            assert await soon(flushing(hand, completed(c, "x"))) == Flushed()
        assert await soon(flushing(hand, finish(c))) == Flushed()
        await hand.record(finish(await hand.take("a")), finish(b))


async def test_a_run_whose_descendant_is_locked_is_busy_with_its_end() -> None:  # B52
    async with desk() as d:
        hand, a, b = await two(d)
        await hand.record(child(a, "call", new("c")))
        c = await hand.take("c")
        await hand.record(child(c, "call", new("deep")))
        async with users_transaction(d, "deep"):
            assert await soon(flushing(hand, finish(a), finish(b))) == Flushed(busy=frozenset([a.run_id]))
        assert await soon(flushing(hand, finish(a))) == Flushed()
        assert (await d.scheduler.settled(["deep"])).finished
        await hand.flush(finish(c, "cancelled"))


async def test_an_execution_id_that_a_user_is_starting_holds_up_only_who_starts_it_too() -> None:  # B3
    async with desk() as d:
        hand, a, b = await two(d)
        async with users_transaction(d, starts="wanted"):
            facts = child(a, "call", new("wanted")), child(b, "call", new("other")), completed(b, "y")
            assert (await soon(flushing(hand, *facts))).busy == {a.run_id, b.run_id}
            assert await soon(flushing(hand, *facts, patience=50_000)) == Flushed(busy=frozenset([a.run_id]))
            assert await names(d) == ["call", "y"]
        assert await soon(flushing(hand, facts[0])) == Flushed()
        assert [run.execution_id for run in await hand.claim()] == ["wanted", "other"]


# --- leases ---------------------------------------------------------------------------------------------------------------


async def test_a_release_passes_over_what_is_locked_and_frees_it_later() -> None:  # B59
    async with desk() as d:
        hand, *_ = await two(d)
        async with users_transaction(d, "a"):
            async with asyncio.timeout(SOON):
                assert await hand.release() == 1
                await hand.heartbeat()
                assert [run.execution_id for run in await hand.claim()] == ["b"]

        async def freed() -> bool:
            return bool(await d.value("SELECT worker_id IS NULL FROM active WHERE run_id = 1"))

        await until(freed)
        [again] = await (await d.hand()).claim()
        assert (again.execution_id, again.epoch) == ("a", 2)


async def test_a_worker_that_leaves_does_not_wait_for_what_is_locked() -> None:  # B59
    async with desk() as d:
        hand, *_ = await two(d)
        async with users_transaction(d, "a"):
            async with asyncio.timeout(SOON):
                leaving = asyncio.create_task(hand.deregister())

                async def freed() -> bool:
                    return bool(await d.value("SELECT count(*) = 1 FROM active WHERE worker_id IS NULL"))

                await until(freed)
        await leaving
        assert sorted(await (await d.hand()).claim_ids()) == ["a", "b"]


async def test_signals_and_reaps_do_not_wait_behind_clients() -> None:  # B56
    async with desk(pool_size=1) as d:
        hand, a, b = await two(d)
        async with users_transaction(d, "a"):
            offer = asyncio.create_task(d.scheduler.offer_event(Offer(execution_id="a", name="more", payload=b"")))
            await d.blocked()
            async with asyncio.timeout(SOON):
                assert await hand.look(watch(a), watch(b)) == []
                await d.scheduler.reap(3)
        assert await offer
        await hand.record(finish(a), finish(b))


async def test_a_cancelled_run_that_killed_its_worker_and_is_locked_ends_with_a_later_reap() -> None:  # B46, B52
    async with desk() as d:
        mortal = await d.hand(lease=1)
        await d.running(mortal, "a")
        await d.scheduler.cancel("a", None)
        async with users_transaction(d, "a"):
            await d.scheduler.reap(1)
            assert (await d.scheduler.settled(["a"])).finished == []
        assert (await d.scheduler.reap(1)).freed == 1
        [row] = (await d.scheduler.settled(["a"])).finished
        assert row.status == "cancelled"


# --- the whole ------------------------------------------------------------------------------------------------------------


class Steps(TaskHandler[None, str]):
    name = "steps"

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}
        self.go_on = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        for n in range(100_000):
            if self.go_on.is_set():
                break
            await ctx.step(f"step-{n}", self.take, ctx.execution_id)
        return "done"

    async def take(self, execution_id: str) -> int:
        self.taken[execution_id] = self.taken.get(execution_id, 0) + 1
        return self.taken[execution_id]


async def test_an_open_transaction_of_a_user_stops_one_execution_and_not_its_worker() -> None:  # B61
    steps = Steps()
    registry = TaskRegistry()
    registry.register(steps)
    async with desk() as d:
        client = DurableScheduler(d.scheduler)
        async with Worker(d.scheduler, registry, WorkerConfig(poll_interval="200ms")):
            handles = [await client.start(Steps, None, execution_id=f"e{n}") for n in range(5)]

            async def all_run() -> bool:
                return len(steps.taken) == 5

            await until(all_run)
            async with users_transaction(d, "e2"):
                before = dict(steps.taken)

                async def others_go_on() -> bool:
                    return all(steps.taken[f"e{n}"] > before[f"e{n}"] + 20 for n in (0, 1, 3, 4))

                await until(others_go_on)
                assert steps.taken["e2"] <= before["e2"] + 2
            stopped = steps.taken["e2"]

            async def goes_on() -> bool:
                return steps.taken["e2"] > stopped + 5

            await until(goes_on)
            steps.go_on.set()
            assert [await handle.result("30s") for handle in handles] == ["done"] * 5
        assert await d.scheduler.audit() == []


# --- queues with limits ---------------------------------------------------------------------------------------------------


async def test_what_is_locked_in_a_queue_with_limits_keeps_the_others_from_no_place() -> None:
    async with desk() as d:
        hand = await d.hand()
        limits = (QueueLimits(name="default", concurrency=1),)
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default",), limits=limits)
        await d.scheduler.register(info, 600_000_000)
        await d.scheduler.start([new("a", key="1"), new("b", key="2"), new("c"), new("d")])
        assert len(await hand.claim()) == 1
        await hand.release()  # all of them stand in line now
        async with users_transaction(d, "a", "c"):
            taken: list[str] = []
            for _ in range(2):
                [run] = await hand.claim()
                taken.append(run.execution_id)
                await hand.record(finish(run))
            assert sorted(taken) == ["b", "d"]
            assert await hand.claim() == []
        assert len(await hand.claim()) == 1


async def test_a_claim_does_not_hang_on_a_queue_that_another_claim_keeps_locked() -> None:
    async with desk() as d:
        tight = tuple(QueueLimits(name=name, concurrency=100) for name in ("default", "other"))
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default", "other"), limits=tight)
        worker_id = await d.scheduler.register(info, LONG)
        hand = Hand(d.scheduler, worker_id, name="w", lease=LONG, tasks=(TASK,), queues=info.queues)
        await d.scheduler.start([new("a"), new("b", queue="other"), new("c", queue="other")])
        # What a claim does whose worker is frozen and does not read the answer.
        async with holding(d, "SELECT 1 FROM queues WHERE name = $1 FOR NO KEY UPDATE", "default"):
            async with asyncio.timeout(SOON):
                claimed = await hand.ask(100)
                await d.scheduler.heartbeat(hand.worker_id, LONG)
            assert [run.execution_id for run in claimed.runs] == ["b", "c"]
            assert claimed.next_wake is not None
            assert claimed.next_wake < d.scheduler.clock.now() + 1_000_000
        assert await hand.claim_ids() == ["a"]


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_a_user_has_locked_in_a_line_keeps_none_behind_it_waiting(key: str | None) -> None:
    async with desk() as d:
        tight = (QueueLimits(name="default", concurrency=1, per_key=1),)
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default",), limits=tight)
        await d.scheduler.register(info, LONG)
        hand = await d.hand()
        [first] = await d.running(hand, "first")
        keys = [None, None, None] if key is None else ["a", "b", "c"]
        await d.scheduler.start([new(name, key=key) for name, key in zip(("a", "b", "c"), keys, strict=True)])
        assert await hand.claim() == []  # now all three are in the line
        async with users_transaction(d, "a", "b"):
            await hand.record(finish(first))
            async with asyncio.timeout(SOON):
                assert await hand.claim_ids() == ["c"]
