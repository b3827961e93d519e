"""Counting: how many executions there are of which kind, exact whatever has happened to them; and the workers that live."""

from __future__ import annotations

from collections import Counter

from zart_core.records import FINISHED, NewPause, Purge, TaskOffer, WorkerInfo
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import child, finish, suspend
from zart_core.testing.contract.succession import continued, next_run, revival

OTHER = TaskOffer("other", "2", None)


class CountingContract(Contract):
    @on_bench
    async def test_counts_are_by_task_and_queue_too(self, bench: Bench) -> None:  # B69
        hand = await bench.hand(tasks=(TaskOffer("task", "1", None), OTHER), queues=("default", "fast"))
        await bench.start("a", "b")
        await bench.start("c", task="other", queue="fast")
        await bench.start("d", queue="fast")
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(finish(runs["a"]), finish(runs["c"], "failed", error=b"e"), finish(runs["d"]))
        await bench.start("e", task="other")
        assert await counts(bench) == {
            ("task", "default", "completed"): 1,
            ("task", "default", "running"): 1,
            ("other", "fast", "failed"): 1,
            ("task", "fast", "completed"): 1,
            ("other", "default", "scheduled"): 1,
        }

    @on_bench
    async def test_what_is_replaced_revived_or_purged_is_not_counted_any_more(
        self, bench: Bench
    ) -> None:  # B66, B65, B70
        hand, run = await bench.running("a")
        await hand.record(finish(run, "failed", error=b"e"))
        assert await counts(bench) == {("task", "default", "failed"): 1}
        await bench.scheduler.revive(await revival(bench, "a"))
        assert await counts(bench) == {("task", "default", "scheduled"): 1} or await counts(bench) == {
            ("task", "default", "waiting"): 1
        }
        run = await hand.take("a")
        await hand.record(finish(run))
        await bench.scheduler.begin_run(next_run(run))
        assert await counts(bench) == {("task", "default", "scheduled"): 1}
        run = await hand.take("a")
        await hand.record(continued(run))
        run = await hand.take("a")
        await bench.scheduler.begin_run(next_run(run, nonce=9))  # a live one
        await bench.scheduler.cancel("a", None)
        assert await counts(bench) == {("task", "default", "cancelled"): 1}
        await bench.scheduler.purge(Purge(older_than=0, statuses=FINISHED))
        assert await counts(bench) == {}

    @on_bench
    async def test_an_end_that_is_told_twice_is_counted_once(self, bench: Bench) -> None:  # B61
        hand, run = await bench.running("a")
        await hand.record(finish(run))
        assert (await hand.flush(finish(run))).lost == {run.run_id}
        await bench.scheduler.reap(100)
        await bench.scheduler.reap(100)
        assert await counts(bench) == {("task", "default", "completed"): 1}

    @on_bench
    async def test_a_sweep_changes_no_count(self, bench: Bench) -> None:
        hand = await bench.hand()
        for number in range(3):
            _, run = await bench.running(f"a-{number}", hand)
            await hand.record(finish(run))
            assert await counts(bench) == {("task", "default", "completed"): number + 1}
            await bench.scheduler.reap(100)
            assert await counts(bench) == {("task", "default", "completed"): number + 1}

    @on_bench
    async def test_an_execution_that_is_held_counts_for_its_own_queue(self, bench: Bench) -> None:  # B68
        await bench.start("a", queue="fast")
        await bench.scheduler.pause(NewPause(nonce=1, execution_id="a"))
        assert await counts(bench) == {("task", "fast", "paused"): 1}
        await bench.scheduler.cancel("a", None)
        assert await counts(bench) == {("task", "fast", "cancelled"): 1}

    @on_bench
    async def test_children_that_are_cancelled_with_their_parent_are_counted(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("p")
        await hand.record(*(child(run, f"call-{n}", new(f"c-{n}")) for n in range(5)), suspend(run, on_children=True))
        await bench.scheduler.cancel("p", None)
        assert await counts(bench) == {("task", "default", "cancelled"): 6}

    @on_bench
    async def test_what_sleeps_waits_for_nothing_but_a_time(self, bench: Bench) -> None:  # B69
        hand = await bench.hand()
        await bench.start("sleeps", "waits", "with-timeout")
        runs = {run.execution_id: run for run in await hand.claim()}
        await bench.scheduler.start([new("later", delay=LONG)])
        later = bench.now() + LONG
        await hand.record(
            suspend(runs["sleeps"], later),
            suspend(runs["waits"], on_signal=True),
            suspend(runs["with-timeout"], later, on_signal=True),
        )
        stats = await bench.scheduler.stats()
        assert (stats.sleeping, stats.by_status["waiting"], stats.by_status["scheduled"]) == (1, 3, 1)

    @on_bench
    async def test_what_is_quarantined_is_told_from_what_is_paused(self, bench: Bench) -> None:  # B46
        hand = await bench.hand(lease=LAPSE)
        await bench.start("deadly")
        await hand.claim()
        await bench.bury(hand, max_deliveries=1)
        await bench.start("held")
        await bench.scheduler.pause(NewPause(nonce=1, execution_id="held"))
        stats = await bench.scheduler.stats()
        assert (stats.quarantined, stats.by_status["paused"]) == (1, 2)

    @on_bench
    async def test_workers_say_who_they_are_and_how_much_they_hold(self, bench: Bench) -> None:  # B69
        info = WorkerInfo(
            name="w",
            host="there",
            pid=77,
            tasks=("task", "other"),
            queues=("default", "fast"),
            library="9.9",
            versions=("1", None),
            concurrency=5,
        )
        before = bench.now()
        worker_id = await bench.scheduler.register(info, LONG)
        hand = await bench.hand(name="second")
        await bench.start("a", "b")
        await hand.claim()
        first, second = (await bench.scheduler.stats()).workers
        assert (first.worker_id, first.info, first.runs) == (worker_id, info, 0)
        assert (second.info.name, second.runs) == ("second", 2)
        assert before <= first.registered_at == first.heartbeat_at == first.expires_at - LONG
        await bench.pass_time(10_000)
        await bench.scheduler.heartbeat(worker_id, LONG)
        [again, _] = (await bench.scheduler.stats()).workers
        assert again.registered_at == first.registered_at
        assert again.heartbeat_at >= first.heartbeat_at + 10_000
        await bench.scheduler.deregister(worker_id)
        assert [worker.worker_id for worker in (await bench.scheduler.stats()).workers] == [hand.worker_id]


async def counts(bench: Bench) -> dict[tuple[str, str, str], int]:
    """How many there are, by task, queue and status."""
    found: Counter[tuple[str, str, str]] = Counter()
    for tally in (await bench.scheduler.stats()).tallies:
        found[tally.task, tally.queue, tally.status] += tally.count
    assert min(found.values(), default=1) > 0
    return dict(found)
