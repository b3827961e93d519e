"""Races, each made to happen: a transaction of ours holds the row at which two meet, and is let go when they wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.postgres.hand import Desk, desk, until
from tests.postgres.server import connection_to
from zart_core.records import Flushed, Offer
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import child, completed, finish, suspend
from zart_postgres import PostgresScheduler, claims
from zart_postgres.lanes import Session


@contextlib.asynccontextmanager
async def holding(d: Desk, query: str, *arguments: object) -> AsyncIterator[Any]:
    """A transaction that has done ``query`` and is committed at the end of the block."""
    async with connection_to(d.url) as sql:
        await sql.execute("SET search_path TO zart")
        async with sql.transaction():
            await sql.execute(query, *arguments)
            yield sql


_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
_ROW = "SELECT 1 FROM active WHERE run_id = $1 FOR NO KEY UPDATE"


async def test_an_event_that_comes_first_refuses_the_suspension() -> None:  # B28
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        async with holding(d, _ROW, run.run_id):
            offering = asyncio.create_task(d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b"")))
            await d.blocked()
            suspending = asyncio.create_task(hand.flush(suspend(run, on_signal=True)))
            await d.blocked(2)
        assert await offering
        assert await suspending == Flushed(refused=frozenset((run.run_id,)))
        await hand.record(finish(run))


async def test_an_event_that_comes_second_wakes_the_suspended() -> None:  # B28
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        async with holding(d, _ROW, run.run_id):
            suspending = asyncio.create_task(hand.flush(suspend(run, on_signal=True)))
            await d.blocked()
            offering = asyncio.create_task(d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b"")))
            await d.blocked(2)
        assert await suspending == Flushed()
        assert await offering
        assert [event.name for event in (await hand.take("a")).events] == ["news"]


async def test_of_two_offers_with_one_id_the_second_finds_the_first() -> None:  # B30
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        offer = Offer(execution_id="a", name="news", payload=b"", event_id="once")
        async with holding(d, _ROW, run.run_id):
            offering = [asyncio.create_task(d.scheduler.offer_event(offer)) for _ in range(3)]
            await d.blocked(3)
        assert sorted(await asyncio.gather(*offering)) == [False, False, True]
        await hand.record(finish(run))


async def test_a_claim_passes_over_what_somebody_has_locked() -> None:  # B55
    async with desk() as d:
        hand = await d.hand()
        [first, *_] = await d.scheduler.start([new("a"), new("b"), new("c")])
        async with holding(d, _ROW, first.run_id):
            assert await hand.claim_ids() == ["b", "c"]
        assert await hand.claim_ids() == ["a"]


async def test_a_full_claim_looks_behind_what_others_have_locked() -> None:  # B55
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new(f"a-{n}") for n in range(6)])
        locked = "SELECT 1 FROM active WHERE run_id IN (SELECT run_id FROM active ORDER BY wake_at, run_id LIMIT 2) FOR UPDATE"
        async with holding(d, locked):
            # The first two of its three are taken: a claim that was content with one would leave its slots empty.
            assert await hand.claim_ids(limit=3) == ["a-2", "a-3", "a-4"]


async def test_a_claim_brings_the_step_that_was_recorded_while_it_waited() -> None:  # B9
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        heir = await d.hand()
        # The claim has begun, and with it any snapshot of its beginning, and waits for its worker's row.
        async with holding(d, "SELECT 1 FROM workers WHERE worker_id = $1 FOR NO KEY UPDATE", heir.worker_id):
            claiming = asyncio.create_task(heir.claim())
            await d.blocked()
            await hand.record(completed(run, "charged"), suspend(run, wake_at=0))
        [again] = await claiming
        assert [step.name for step in again.steps] == ["charged"]


async def test_a_zombie_that_waited_for_the_row_of_its_heir_writes_nothing() -> None:  # B57
    async with desk() as d:
        hand, heir = await d.hand(), await d.hand()
        [run] = await d.running(hand, "a")
        takeover = f"UPDATE active SET worker_id = {heir.worker_id}, epoch = epoch + 1 WHERE run_id = {run.run_id}"
        async with holding(d, takeover):
            writing = asyncio.create_task(hand.flush(completed(run, "late"), finish(run)))
            await d.blocked()
        assert await writing == Flushed(lost=frozenset((run.run_id,)))
        assert await d.value("SELECT count(*) FROM steps") == 0


async def test_a_heartbeat_on_its_way_keeps_a_late_worker_alive() -> None:  # B57
    async with desk() as d:
        hand = await d.hand(lease=1)
        [run] = await d.running(hand, "a")
        beat = f"UPDATE workers SET expires_at = zart.now_v1() + {LONG} WHERE worker_id = {hand.worker_id}"
        async with holding(d, beat):
            assert (await d.scheduler.reap(3)).freed == 0
        assert (await d.scheduler.reap(3)).freed == 0
        await hand.record(finish(run))


async def test_what_a_dead_worker_has_locked_is_freed_by_a_later_reap() -> None:  # B56
    async with desk() as d:
        hand = await d.hand(lease=1)
        runs = await d.running(hand, "a", "b")
        async with holding(d, _ROW, runs[0].run_id):
            assert (await d.scheduler.reap(3)).freed == 1
        assert (await d.scheduler.reap(3)).freed == 1
        assert (await d.scheduler.reap(3)).freed == 0
        assert await d.value("SELECT emptied FROM workers")


async def test_a_reaper_that_died_after_the_burial_leaves_the_rest_to_the_next() -> None:  # B56
    async with desk() as d:
        hand = await d.hand()
        await d.running(hand, "a", "b")
        # All that the first of its three statements does.
        await d.sql.execute("UPDATE workers SET expires_at = NULL")
        assert (await d.scheduler.reap(3)).freed == 2
        assert await d.value("SELECT emptied FROM workers")


async def test_a_claim_that_arrives_after_a_release_takes_nothing() -> None:  # B61
    async with desk() as d:
        hand = await d.hand()
        stale = claims.Turns()
        stale.note(hand.worker_id, 0)
        await hand.release()
        await d.scheduler.start([new("a")])
        # What the broken connection still held in its buffers, word for word.
        late = await d.sql.fetch(
            "SELECT run_id, turn FROM claim_v1($1, 0, $2, '{default}', '{task}', '{1}', '{NULL}', 10, 10, $2, 9999, 9999)",
            hand.worker_id,
            LONG,
        )
        assert [tuple(row) for row in late] == [(None, 1)]
        assert await hand.claim_ids() == ["a"]


async def test_a_worker_whose_release_went_through_another_scheduler_claims_on() -> None:  # B61
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand = await d.hand()
        await other.release(hand.worker_id, [])
        await d.scheduler.start([new("a")])
        assert await hand.claim_ids() == ["a"]


async def test_a_cancelled_claim_gives_back_what_it_takes() -> None:  # B61
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new("a")])
        async with holding(d, "SELECT 1 FROM workers FOR NO KEY UPDATE"):
            claiming = asyncio.create_task(hand.claim())
            await d.blocked()
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
        await until(lambda: d.value("SELECT epoch = 1 AND worker_id IS NULL FROM active"))
        assert await hand.claim_ids() == ["a"]


async def test_a_transaction_that_was_undone_for_another_is_repeated() -> None:
    async with desk() as d:
        calls = await d.scheduler._use()
        tries = 0

        async def work(db: Session) -> int:
            nonlocal tries
            tries += 1
            if tries < 3:
                await db.rows("DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$ -- {schema}.x")
            return tries

        assert await calls.client.run(work) == 3


async def test_flushes_that_name_the_same_runs_in_any_order_do_not_deadlock() -> None:
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand = await d.hand()
        runs = await d.running(hand, *(f"a-{n}" for n in range(50)))
        before = await d.value(_DEADLOCKS)

        async def write(scheduler: PostgresScheduler, number: int) -> None:
            for n in range(8):
                order = runs if number % 2 else runs[::-1]
                await scheduler.flush(hand.gather(*(completed(run, f"{number}-{n}") for run in order)))

        await asyncio.gather(*(write((d.scheduler, other)[n % 2], n) for n in range(4)))
        await d.sql.execute("SELECT pg_stat_clear_snapshot()")
        assert await d.value(_DEADLOCKS) == before
        assert await d.value("SELECT count(*) FROM steps") == 4 * 8 * 50


# --- children ---------------------------------------------------------------------------------------------------------


async def test_the_last_two_children_that_end_at_once_wake_their_parent_once() -> None:  # B36
    async with desk() as d, PostgresScheduler(d.url) as other:
        hands = [await d.hand(), await d.hand(other)]
        [parent] = await d.running(hands[0], "p")
        calls = [child(parent, f"call-{n}", new(f"c{n}")) for n in range(2)]
        await hands[0].record(*calls, suspend(parent, on_children=True))
        runs = [(await hand.claim(1))[0] for hand in hands]
        async with holding(d, _ROW, parent.run_id):
            ending = [asyncio.create_task(hand.flush(finish(run))) for hand, run in zip(hands, runs, strict=True)]
            await d.blocked(2)
        assert await asyncio.gather(*ending) == [Flushed(), Flushed()]
        woken = await hands[0].take("p")
        assert (woken.epoch, woken.open_children, woken.signal_seq) == (2, 0, 2)
        assert sorted(row.event_seq or 0 for row in woken.steps) == [1, 2]
        assert await hands[1].claim() == []


async def test_a_last_child_that_ends_first_refuses_its_parents_suspension() -> None:  # B36
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand, elsewhere = await d.hand(), await d.hand(other)
        [parent] = await d.running(hand, "p")
        await hand.record(child(parent, "call", new("c")))
        run = await elsewhere.take("c")
        async with holding(d, _ROW, parent.run_id):
            ending = asyncio.create_task(elsewhere.flush(finish(run)))
            await d.blocked()
            suspending = asyncio.create_task(hand.flush(suspend(parent, on_children=True)))
            await d.blocked(2)
        assert await ending == Flushed()
        assert await suspending == Flushed(refused=frozenset((parent.run_id,)))
        await hand.record(finish(parent))


async def test_a_last_child_that_ends_second_wakes_its_suspended_parent() -> None:  # B36
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand, elsewhere = await d.hand(), await d.hand(other)
        [parent] = await d.running(hand, "p")
        await hand.record(child(parent, "call", new("c")))
        run = await elsewhere.take("c")
        async with holding(d, _ROW, parent.run_id):
            suspending = asyncio.create_task(hand.flush(suspend(parent, on_children=True)))
            await d.blocked()
            ending = asyncio.create_task(elsewhere.flush(finish(run)))
            await d.blocked(2)
        assert await asyncio.gather(suspending, ending) == [Flushed(), Flushed()]
        assert [row.status for row in (await hand.take("p")).steps] == ["completed"]


async def test_a_child_started_while_a_cancellation_waits_for_its_parent_is_cancelled_too() -> None:  # B52
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand = await d.hand(other)
        [top] = await d.running(hand, "top")
        await hand.record(child(top, "call", new("middle")))
        middle = await hand.take("middle")
        async with holding(d, _ROW, middle.run_id):
            starting = asyncio.create_task(hand.flush(child(middle, "call", new("bottom"))))
            await d.blocked()
            # It has looked for all that descends from the run, and found no child of the one it waits for.
            cancelling = asyncio.create_task(d.scheduler.cancel("top", "enough"))
            await d.blocked(2)
        assert await starting == Flushed()
        assert await cancelling
        bottom = await d.scheduler.get("bottom")
        assert bottom is not None
        assert bottom.status == "cancelled"
        for run in (middle, top):
            await hand.flush(finish(run, "cancelled"))
        assert await d.scheduler.audit() == []


async def test_a_cancellation_that_meets_a_newcomer_of_lower_number_is_repeated() -> None:  # B52
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand = await d.hand(other)
        [early, top] = await d.running(hand, "early", "top")
        await hand.record(child(top, "call", new("middle")))
        middle = await hand.take("middle")
        # As if the run had got its number long before it was stored.
        late = (
            f"UPDATE active SET parent_run = {middle.run_id}, parent_name = 'call', parent_ordinal = 0, worker_id = NULL, "
            f"wake_at = 0, epoch = 0 WHERE run_id = {early.run_id}; "
            f"UPDATE active SET open_children = 1 WHERE run_id = {middle.run_id}"
        )
        before = await d.value(_DEADLOCKS)
        async with holding(d, late):
            cancelling = asyncio.create_task(d.scheduler.cancel("top", "enough"))
            await d.blocked()
            # This one locks the newcomer first, and then what the cancellation holds: in the order in which everybody locks.
            writing = asyncio.create_task(hand.flush(completed(early, "x"), completed(middle, "x")))
            await d.blocked(2)
        assert await cancelling
        await writing
        assert await d.value("SELECT status FROM results WHERE run_id = $1", early.run_id) == "cancelled"
        await d.sql.execute("SELECT pg_stat_clear_snapshot()")
        assert await d.value(_DEADLOCKS) == before


async def test_families_that_end_and_are_cancelled_at_once_do_not_deadlock() -> None:  # B36, B52
    async with desk() as d, PostgresScheduler(d.url) as other:
        hands = [await d.hand(), await d.hand(other)]
        before = await d.value(_DEADLOCKS)
        for turn in range(4):
            parents = await d.running(hands[0], *(f"p{turn}-{n}" for n in range(6)))
            calls = [child(run, f"call-{n}", new(f"{run.execution_id}-{n}")) for run in parents for n in range(8)]
            await hands[0].record(*calls, *(suspend(run, on_children=True, cleanup=True) for run in parents))
            # Each of the two has children of every parent, by turns.
            held = [(hand, run) for _ in range(24) for hand in hands for run in await hand.claim(1)]
            ends = [
                hand.flush(*(finish(run) for worker, run in held[n::6] if worker is hand))
                for hand in hands
                for n in range(6)
            ]
            await asyncio.gather(
                *ends, *(view.cancel(f"p{turn}-{n}", None) for n in range(3) for view in (d.scheduler, other))
            )
            for hand in hands:
                await hand.flush(*(finish(run, "cancelled") for worker, run in held if worker is hand))
            woken = await hands[0].claim()
            assert len(woken) == 6
            await hands[0].flush(*(finish(run, "cancelled" if run.cancel_requested else "completed") for run in woken))
            assert await d.scheduler.audit() == []
        await d.sql.execute("SELECT pg_stat_clear_snapshot()")
        assert await d.value(_DEADLOCKS) == before


async def test_of_two_parents_that_start_a_child_of_one_id_one_gets_it() -> None:  # B3
    async with desk() as d, PostgresScheduler(d.url) as other:
        hand = await d.hand()
        parents = await d.running(hand, "p", "q")
        names = [f"c{n}" for n in range(40)]

        async def start(number: int) -> None:
            scheduler, order = ((d.scheduler, names), (other, names[::-1]))[number]
            calls = [child(parents[number], name, new(name)) for name in order]
            assert await scheduler.flush(hand.gather(*calls)) == Flushed()

        await asyncio.gather(start(0), start(1))
        rows = [row for name in ("p", "q") for row in (await _calls_of(d, name))]
        assert sorted(rows) == sorted([(name, status) for name in names for status in ("failed", "pending")])
        for scheduler, name in ((d.scheduler, "p"), (other, "q")):
            await scheduler.cancel(name, None)
        await hand.flush(*(finish(run, "cancelled") for run in parents))


async def _calls_of(d: Desk, execution_id: str) -> list[tuple[str, str]]:
    """The names and states of an execution's calls."""
    history = await d.scheduler.history(execution_id)
    assert history is not None
    return [(row.name, row.status) for row in history.steps]
