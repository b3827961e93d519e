"""Steps that are done at their first attempt are flushed by a statement of their own, which does what the general one does."""

from __future__ import annotations

import pytest

from tests.postgres.hand import Desk, desk, statements_counted
from tests.postgres.server import connection_to, fresh_database
from zart_core.records import ClaimedRun, Flush, QueueLimits, StepRow, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import child, completed, failed, finish, pending, step, suspend
from zart_postgres import completions


async def steps_of(d: Desk, run: ClaimedRun) -> dict[str, str]:
    rows = await d.sql.fetch("SELECT name, status FROM steps WHERE run_id = $1", run.run_id)
    return {row["name"]: row["status"] for row in rows}


async def test_done_steps_of_many_runs_are_one_short_statement() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, *(f"a-{n}" for n in range(40)))
        with statements_counted() as counts:
            await hand.record(*(completed(run, f"step-{n}") for run in runs for n in range(5)))
        assert counts == {"active": 1}
        assert await d.value("SELECT count(*) FROM steps WHERE status = 'completed'") == 200


@pytest.mark.parametrize("other", [failed, pending])
async def test_other_steps_go_the_general_way(other: object) -> None:
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        with statements_counted() as counts:
            await hand.record(completed(run, "x"), other(run, "y"))  # type: ignore[operator]
        assert counts == {"flush_v1": 1}
        assert len(await steps_of(d, run)) == 2


async def test_a_step_that_two_facts_tell_of_is_written_once() -> None:
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(completed(run, "x", b"first"), completed(run, "x", b"second"))
        assert await d.value("SELECT output FROM steps") == b"first"


async def test_a_pending_row_is_replaced_whole() -> None:
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        waiting = StepRow("x", 0, "step", "pending", 1, 5, wake_at=9, deadline=9, error=b"e", details=b"d", worker_id=7)
        await hand.record(step(run, waiting))
        with statements_counted() as counts:
            await hand.record(completed(run, "x", b"done"))
        assert counts == {"active": 1}
        row = dict(await d.sql.fetchrow("SELECT * FROM steps"))
        expected = completed(run, "x", b"done").row
        assert {
            name: row[name] for name in ("status", "attempts", "wake_at", "deadline", "error", "details", "output")
        } == {
            "status": "completed",
            "attempts": expected.attempts,
            "wake_at": None,
            "deadline": None,
            "error": None,
            "details": None,
            "output": b"done",
        }
        assert (row["started_at"], row["finished_at"]) == (expected.started_at, expected.finished_at)


async def test_a_run_that_was_taken_over_gets_no_row_and_the_others_get_theirs() -> None:  # B57
    async with desk() as d:
        hand = await d.hand()
        kept, lost = await d.running(hand, "kept", "lost")
        await d.sql.execute("UPDATE active SET epoch = epoch + 1 WHERE run_id = $1", lost.run_id)
        flushed = await d.scheduler.flush(
            Flush(worker_id=hand.worker_id, steps=[completed(kept, "x"), completed(lost, "x")])
        )
        assert (flushed.lost, flushed.busy) == ({lost.run_id}, frozenset())
        assert await steps_of(d, kept) == {"x": "completed"}
        assert await steps_of(d, lost) == {}


async def test_a_run_of_another_worker_gets_no_row() -> None:  # B57
    async with desk() as d:
        hand, other = await d.hand(), await d.hand()
        [run] = await d.running(hand, "a")
        flushed = await d.scheduler.flush(Flush(worker_id=other.worker_id, steps=[completed(run, "x")]))
        assert flushed.lost == {run.run_id}
        assert await steps_of(d, run) == {}


async def test_a_run_that_a_user_has_locked_is_left_out_and_the_others_are_durable_at_once() -> None:
    async with desk() as d:
        hand = await d.hand()
        free, locked = await d.running(hand, "free", "locked")
        async with connection_to(d.url) as user, user.transaction():
            await user.execute("SELECT FROM zart.active WHERE run_id = $1 FOR UPDATE", locked.run_id)
            flushed = await d.scheduler.flush(
                Flush(worker_id=hand.worker_id, steps=[completed(free, "x"), completed(locked, "x")], patience=0)
            )
            assert (flushed.lost, flushed.busy) == (frozenset(), {locked.run_id})
            assert await steps_of(d, free) == {"x": "completed"}
        await hand.record(completed(locked, "x"))
        assert await steps_of(d, locked) == {"x": "completed"}


async def test_the_flush_tells_of_a_cancellation() -> None:  # B52
    async with desk() as d:
        hand = await d.hand()
        run, other = await d.running(hand, "a", "b")
        await d.scheduler.cancel("a", None)
        flushed = await hand.flush(completed(run, "x"), completed(other, "x"))
        assert flushed.cancelled == {run.run_id}


async def statuses(d: Desk) -> dict[str, str]:
    rows = await d.sql.fetch("SELECT r.execution_id, e.status FROM results AS e JOIN runs AS r USING (run_id)")
    return {row["execution_id"]: row["status"] for row in rows}


async def test_ends_of_many_runs_and_steps_of_others_are_one_short_statement() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, *(f"a-{n}" for n in range(20)))
        with statements_counted() as counts:
            await hand.record(
                *(finish(run, output=b"%d" % n) for n, run in enumerate(runs[:10])),
                *(completed(run, "x") for run in runs[10:]),
            )
        assert counts == {"active": 1}
        assert await statuses(d) == {f"a-{n}": "completed" for n in range(10)}
        assert await d.value("SELECT count(*) FROM steps") == 10
        assert await d.value("SELECT count(*) FROM active") == 10
        assert (await d.scheduler.get("a-3")).output == b"3"  # type: ignore[union-attr]
        assert await d.scheduler.audit() == []


async def test_a_step_that_still_waited_is_closed_by_the_short_end() -> None:  # B79
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(pending(run, "nap"))
        with statements_counted() as counts:
            await hand.record(finish(run))
        assert counts == {"active": 1}
        row = await d.sql.fetchrow(
            "SELECT s.finished_at, s.wake_at, e.finished_at AS ended FROM steps AS s, results AS e"
        )
        assert (row["finished_at"], row["wake_at"]) == (row["ended"], None)
        assert await d.scheduler.audit() == []


async def test_runs_whose_other_facts_need_the_general_way_do_not_take_the_rest_with_them() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, *(f"a-{n}" for n in range(20)))
        with statements_counted() as counts:
            await hand.record(
                *(finish(run) for run in runs[:10]), *(completed(run, "x") for run in runs[10:]), failed(runs[19], "y"),
                suspend(runs[18], on_signal=True),
            )  # fmt: skip
        assert counts == {"flush_v1": 1, "active": 1}
        assert len(await statuses(d)) == 10
        assert await d.value("SELECT count(*) FROM steps") == 11
        assert await d.scheduler.audit() == []


async def test_an_end_that_a_cancellation_forestalls_is_refused_and_the_others_are_not() -> None:  # B52
    async with desk() as d:
        hand = await d.hand()
        run, other = await d.running(hand, "a", "b")
        await d.scheduler.cancel("a", None)
        flushed = await hand.flush(finish(run), finish(other))
        assert (flushed.refused, flushed.cancelled, flushed.lost) == ({run.run_id}, {run.run_id}, frozenset())
        assert await statuses(d) == {"b": "completed"}


async def test_an_end_that_a_user_has_locked_is_left_out_and_the_others_are_durable_at_once() -> None:
    async with desk() as d:
        hand = await d.hand()
        free, locked = await d.running(hand, "free", "locked")
        async with connection_to(d.url) as user, user.transaction():
            await user.execute("SELECT FROM zart.active WHERE run_id = $1 FOR UPDATE", locked.run_id)
            flushed = await d.scheduler.flush(
                Flush(worker_id=hand.worker_id, finishes=[finish(free), finish(locked)], patience=0)
            )
            assert (flushed.lost, flushed.busy) == (frozenset(), {locked.run_id})
            assert await statuses(d) == {"free": "completed"}
        await hand.record(finish(locked))
        assert len(await statuses(d)) == 2


async def test_an_end_of_a_run_that_was_taken_over_is_lost() -> None:  # B57
    async with desk() as d:
        hand = await d.hand()
        kept, lost = await d.running(hand, "kept", "lost")
        await d.sql.execute("UPDATE active SET epoch = epoch + 1 WHERE run_id = $1", lost.run_id)
        flushed = await hand.flush(finish(kept), finish(lost))
        assert flushed.lost == {lost.run_id}
        assert await statuses(d) == {"kept": "completed"}


async def test_an_end_cancels_the_children_that_the_run_has_started() -> None:  # B36
    async with desk() as d:
        hand = await d.hand()
        [parent] = await d.running(hand, "parent")
        await hand.record(child(parent, "call", new("child")))
        await hand.record(finish(parent))
        assert await statuses(d) == {"parent": "completed", "child": "cancelled"}


async def test_a_childs_end_answers_its_parent() -> None:  # B36
    async with desk() as d:
        hand = await d.hand()
        [parent] = await d.running(hand, "parent")
        await hand.record(child(parent, "call", new("child")), suspend(parent, on_children=True))
        [started] = await hand.claim()
        await hand.record(finish(started, output=b"done"))
        [woken] = await hand.claim()
        assert [(row.name, row.status, row.output) for row in woken.steps] == [("call", "completed", b"done")]


async def test_an_end_of_a_held_execution_is_counted_in_its_own_queue() -> None:
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await d.sql.execute("UPDATE active SET queue = ''")
        await hand.record(finish(run))
        assert await d.value("SELECT queue FROM tally_changes") == "default"


async def test_a_short_end_tells_that_a_place_has_become_free() -> None:
    async with desk() as d:
        info = WorkerInfo(
            name="w",
            host="h",
            pid=1,
            tasks=("task",),
            queues=("default",),
            limits=(QueueLimits(name="default", concurrency=1),),
        )
        await d.scheduler.register(info, LONG)
        hand = await d.hand()
        await d.scheduler.start([new("a"), new("b")])
        [run] = await hand.claim()
        told: list[bool] = []
        unsubscribe = d.scheduler.subscribe(lambda news: told.append(news.ready))
        await hand.record(finish(run))
        await hand.claim()
        unsubscribe()
        assert told[0] is True


async def test_a_flush_that_comes_twice_leaves_what_is_there() -> None:  # B57
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(completed(run, "x", b"first"))
        await hand.record(completed(run, "x", b"second"))
        await hand.record(completed(run, "x", b"third"), completed(run, "y", b"other"))
        rows = await d.sql.fetch("SELECT name, output FROM steps ORDER BY name")
        assert [tuple(row) for row in rows] == [("x", b"first"), ("y", b"other")]


@pytest.mark.parametrize(
    "statement",
    [completions.COMPLETE, completions.COMPLETE_OVER, completions.COMPLETE_ONE, completions.COMPLETE_ONE_OVER],
)
async def test_its_plan_seeks_each_run_by_its_key(statement: str) -> None:  # B76
    # Made on the first day, when the tables are empty, and kept: by the index of what a worker holds, each row of a flush would
    # walk all that it holds.
    async with fresh_database() as url, connection_to(url) as sql:
        for name in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"):
            await sql.execute(f"SET {name} = off")
        await sql.execute("SET plan_cache_mode = force_generic_plan")
        await sql.execute(f"PREPARE complete AS {statement.replace('{schema}', 'zart')}")
        plan = await sql.fetch("EXPLAIN EXECUTE complete(1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1)")
        scans = [line for [line] in plan if "Scan" in line and " on active" in line]
        assert len(scans) == 1, plan
        assert "using active_pkey" in scans[0]


@pytest.mark.parametrize("statement", [completions.COMPLETE_AND_END, completions.COMPLETE_AND_END_OVER])
async def test_the_plan_of_ends_seeks_by_keys_and_reads_no_history(statement: str) -> None:  # B76
    async with fresh_database() as url, connection_to(url) as sql:
        for name in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"):
            await sql.execute(f"SET {name} = off")
        await sql.execute("SET plan_cache_mode = force_generic_plan")
        await sql.execute(f"PREPARE complete AS {statement.replace('{schema}', 'zart')}")
        nulls = ", ".join(["NULL"] * 13)
        plan = await sql.fetch(f"EXPLAIN EXECUTE complete(1, {nulls})")
        scans = [line for [line] in plan if "Scan" in line and (" on active" in line or " on steps" in line)]
        assert len(scans) == 4, plan
        assert sum("using active_pkey" in line for line in scans) == 3, plan
        assert sum("using steps_pending" in line for line in scans) == 1, plan
