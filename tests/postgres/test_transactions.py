"""Transactions that are shared with users: ours with their writes in it, and theirs with our rows in them."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import asyncpg
import pytest

from tests.postgres.hand import Desk, desk, until
from tests.postgres.server import connection_to
from zart_core import DurableScheduler, StepError, TaskContext, TaskHandler, TaskRegistry, Worker
from zart_core.errors import BackendUnavailable, ExecutionAlreadyExists, ExecutionFinished, ExecutionNotFound
from zart_core.records import ClaimedRun, Flushed, Offer, StepKey, StepRow
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import Hand, completed, finish, step_row, suspend
from zart_postgres import PostgresScheduler, transactions
from zart_postgres.lanes import Session
from zart_postgres.transactions import StepTransaction


class PayError(Exception):
    """What a body raises."""


def key_of(hand: Hand, run: ClaimedRun, name: str = "pay") -> StepKey:
    return StepKey(hand.worker_id, run.run_id, run.epoch, name, 0)


async def running(d: Desk) -> tuple[Hand, ClaimedRun]:
    await d.sql.execute("DROP TABLE IF EXISTS public.paid; CREATE TABLE public.paid (amount integer PRIMARY KEY)")
    hand = await d.hand()
    [run] = await d.running(hand, "a")
    return hand, run


async def paid(d: Desk) -> list[int]:
    return [row[0] for row in await d.sql.fetch("SELECT amount FROM public.paid ORDER BY amount")]


async def pay(connection: Any) -> StepRow:
    await connection.execute("INSERT INTO public.paid VALUES (7)")
    return step_row("pay", output=b"paid", at=5)


async def names(d: Desk) -> list[str]:
    return [row[0] for row in await d.sql.fetch("SELECT name FROM steps ORDER BY name")]


async def test_writes_and_row_are_committed_together() -> None:  # B54
    async with desk() as d:
        hand, run = await running(d)
        assert await d.scheduler.transact(key_of(hand, run), pay) == step_row("pay", output=b"paid", at=5)
        assert (await paid(d), await names(d)) == ([7], ["pay"])
        await hand.record(suspend(run, wake_at=0))
        assert [row.output for row in (await hand.take("a")).steps] == [b"paid"]


async def test_what_the_body_raises_undoes_everything_and_is_raised() -> None:  # B54
    async with desk() as d:
        hand, run = await running(d)

        async def fail(connection: Any) -> StepRow:
            await pay(connection)
            raise PayError

        with pytest.raises(PayError):
            await d.scheduler.transact(key_of(hand, run), fail)
        assert (await paid(d), await names(d)) == ([], [])
        assert await d.scheduler.transact(key_of(hand, run), pay) is not None


async def test_a_body_whose_statement_fails_undoes_everything() -> None:  # B54
    async with desk() as d:
        hand, run = await running(d)
        await d.sql.execute("INSERT INTO public.paid VALUES (7)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await d.scheduler.transact(key_of(hand, run), pay)
        assert (await paid(d), await names(d)) == ([7], [])


async def test_a_worker_that_lost_the_run_before_the_commit_writes_nothing() -> None:  # B57
    async with desk() as d:
        hand, run = await running(d)

        async def late(connection: Any) -> StepRow:
            row = await pay(connection)
            await hand.release()
            return row

        assert await d.scheduler.transact(key_of(hand, run), late) is None
        assert (await paid(d), await names(d)) == ([], [])


async def test_a_worker_that_does_not_hold_the_run_does_not_run_the_body() -> None:  # B57
    async with desk() as d:
        hand, run = await running(d)
        await hand.release()
        assert await d.scheduler.transact(key_of(hand, run), pay) is None
        assert await paid(d) == []


async def test_a_step_that_has_finished_is_answered_without_running_the_body() -> None:  # B61
    async with desk() as d:
        hand, run = await running(d)
        await d.scheduler.transact(key_of(hand, run), pay)
        assert await d.scheduler.transact(key_of(hand, run), pay) == step_row("pay", output=b"paid", at=5)
        assert await paid(d) == [7]


async def test_an_earlier_try_that_commits_meanwhile_wins() -> None:  # B61
    async with desk() as d:
        hand, run = await running(d)
        first = step_row("pay", output=b"first", at=5)

        async def second(connection: Any) -> StepRow:
            await connection.execute("INSERT INTO public.paid VALUES (8)")
            await hand.record(completed(run, "pay", b"first"))
            return step_row("pay", output=b"second")

        row = await d.scheduler.transact(key_of(hand, run), second)
        assert row is not None
        assert row.output == first.output
        assert await paid(d) == []


async def test_a_long_body_holds_up_neither_events_nor_other_steps_of_its_run() -> None:
    async with desk() as d:
        hand, run = await running(d)

        async def long(connection: Any) -> StepRow:
            row = await pay(connection)
            assert await d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""))
            assert await hand.flush(completed(run, "other")) == Flushed()
            return row

        assert await d.scheduler.transact(key_of(hand, run), long) is not None
        assert await names(d) == ["other", "pay"]


async def test_a_body_that_is_given_up_has_written_nothing() -> None:  # B48
    async with desk() as d:
        hand, run = await running(d)
        begun = asyncio.Event()

        async def hang(connection: Any) -> StepRow:
            row = await pay(connection)
            begun.set()
            await asyncio.sleep(60)
            return row

        transacting = asyncio.create_task(d.scheduler.transact(key_of(hand, run), hang))
        await begun.wait()
        transacting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await transacting
        assert await d.scheduler.transact(key_of(hand, run), pay) is not None
        assert await paid(d) == [7]


async def test_a_statement_of_a_body_that_is_given_up_is_ended_on_the_server_too() -> None:  # B49
    async with desk() as d:
        hand, run = await running(d)

        async def hang(connection: Any) -> StepRow:
            row = await pay(connection)
            await connection.execute("SELECT pg_sleep(60)")
            return row

        transacting = asyncio.create_task(d.scheduler.transact(key_of(hand, run), hang))
        sleeping = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid() "
            "AND datname = current_database() AND state = 'active'"
        )

        async def sleeps() -> bool:
            return bool(await d.value(sleeping))

        async def is_over() -> bool:
            return not await d.value(sleeping)

        await until(sleeps)
        transacting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await transacting
        # Its locks would keep the next attempt waiting.
        await until(is_over, 5.0)
        assert await d.scheduler.transact(key_of(hand, run), pay) is not None
        assert await paid(d) == [7]


async def test_a_body_that_ends_the_transaction_fails() -> None:
    async with desk() as d:
        hand, run = await running(d)

        async def end(connection: Any) -> StepRow:
            await connection.execute("ROLLBACK")
            return step_row("pay")

        with pytest.raises(RuntimeError, match="has ended the transaction"):
            await d.scheduler.transact(key_of(hand, run), end)
        assert await names(d) == []


async def test_what_a_body_set_on_its_connection_ends_with_it() -> None:
    async with desk(pool_size=1) as d:
        hand, run = await running(d)

        async def meddle(connection: Any) -> StepRow:
            assert await connection.fetchval("SHOW enable_seqscan") == "on"
            await connection.execute("SET application_name = 'mine'; SET search_path = nowhere")
            return step_row("one")

        async def look(connection: Any) -> StepRow:
            assert await connection.fetchval("SHOW application_name") == "zart transaction"
            return step_row("two")

        assert await d.scheduler.transact(key_of(hand, run, "one"), meddle) is not None
        assert await d.scheduler.transact(key_of(hand, run, "two"), look) is not None


DEFERRED = """
    DROP TABLE IF EXISTS public.due, public.owed;
    CREATE TABLE public.owed (id integer PRIMARY KEY);
    CREATE TABLE public.due (owed integer REFERENCES public.owed DEFERRABLE INITIALLY DEFERRED)
"""


async def test_what_the_server_refuses_at_the_commit_undoes_everything_and_is_raised() -> None:  # B54
    async with desk(pool_size=1) as d:
        hand, run = await running(d)
        await d.sql.execute(DEFERRED)

        async def owe(connection: Any) -> StepRow:
            row = await pay(connection)
            await connection.execute("INSERT INTO public.due VALUES (404)")
            return row

        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await d.scheduler.transact(key_of(hand, run), owe)
        assert (await paid(d), await names(d)) == ([], [])
        assert await d.scheduler.transact(key_of(hand, run), pay) is not None


class Owing(TaskHandler[None, list[Any]]):
    """Its first transaction breaks a constraint that is looked at when it is committed; its second mends that."""

    name = "owing"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        said: list[Any] = []
        for name, retry in (("once", "none"), ("twice", "fixed(1, 1ms)")):
            try:
                await ctx.transaction(name, self.owe, retry=retry)
            except StepError as failed:
                said.append([type(failed).__name__, getattr(failed, "cause_type", ""), "due_owed_fkey" in str(failed)])
        said.append(await ctx.transaction("mended", self.mend))
        return said

    async def owe(self, connection: asyncpg.Connection) -> None:
        await connection.execute("INSERT INTO public.due VALUES (404)")

    async def mend(self, connection: asyncpg.Connection) -> int:
        await connection.execute("INSERT INTO public.due VALUES (404); INSERT INTO public.owed VALUES (404)")
        return 1


async def test_a_constraint_that_is_broken_at_the_commit_fails_the_step_like_an_error_of_its_body() -> None:  # B54
    registry = TaskRegistry()
    registry.register(Owing())
    async with desk() as d:
        await d.sql.execute(DEFERRED)
        client = DurableScheduler(d.scheduler)
        async with Worker(d.scheduler, registry):
            said = await client.start_and_wait(Owing, None, execution_id="a", timeout="20s")
        assert said == [
            ["StepFailed", "ForeignKeyViolationError", True],
            ["RetryExhausted", "ForeignKeyViolationError", True],
            1,
        ]
        steps = {step.name: (step.status, step.attempts) for step in (await client.history("a")).steps}
        assert steps == {"once": ("failed", 1), "twice": ("failed", 2), "mended": ("completed", 1)}
        assert await d.value("SELECT count(*) FROM public.due") == 1


async def test_a_lock_that_a_failed_body_took_for_its_session_ends_with_it() -> None:
    async with desk(pool_size=1) as d:
        hand, run = await running(d)

        async def lock(connection: Any) -> StepRow:
            await connection.execute("SELECT pg_advisory_lock(7)")
            raise PayError

        with pytest.raises(PayError):
            await d.scheduler.transact(key_of(hand, run), lock)
        assert await d.value("SELECT pg_try_advisory_lock(7)")


async def test_a_worker_that_is_frozen_right_before_its_commit_does_not_keep_the_run_from_others() -> None:  # B56, B57
    class Frozen(StepTransaction):
        """After its last statement nothing more is heard of it."""

        async def _write(self, db: Session, row: StepRow) -> str:
            outcome = await super()._write(db, row)
            written.set()
            await thawed.wait()
            return outcome

    written, thawed = asyncio.Event(), asyncio.Event()
    async with desk() as d, PostgresScheduler(d.url) as there:
        hand, run = await running(d)
        with mock.patch.object(transactions, "StepTransaction", Frozen):
            frozen = asyncio.create_task(d.scheduler.transact(key_of(hand, run), pay))
            await written.wait()
        heir = await d.hand(there)
        await d.sql.execute("UPDATE workers SET expires_at = 0 WHERE worker_id = $1", hand.worker_id)

        async def freed() -> bool:
            return (await there.reap(100, heir.worker_id)).freed == 1

        await until(freed)
        again = await heir.take("a")
        thawed.set()
        with pytest.raises(BackendUnavailable):
            await frozen
        assert (await paid(d), await names(d)) == ([], [])
        assert await there.transact(key_of(heir, again), pay) is not None


# --- theirs -----------------------------------------------------------------------------------------------------------


async def test_a_start_in_the_callers_transaction_comes_with_its_commit() -> None:  # B6
    async with desk() as d, connection_to(d.url) as tx:
        hand = await d.hand()
        async with tx.transaction():
            [started] = await d.scheduler.start([new("a")], tx)
            assert started.created
            assert await d.scheduler.get("a") is None
            assert await hand.claim() == []
        assert await hand.claim_ids() == ["a"]


async def test_a_start_in_a_transaction_that_is_rolled_back_never_was() -> None:  # B6
    async with desk() as d, connection_to(d.url) as tx:
        transaction = tx.transaction()
        await transaction.start()
        await d.scheduler.start([new("a")], tx)
        await transaction.rollback()
        assert await d.scheduler.get("a") is None
        assert await d.scheduler.audit() == []


async def test_an_event_in_the_callers_transaction_wakes_with_its_commit() -> None:  # B6
    async with desk() as d, connection_to(d.url) as tx:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(suspend(run, on_signal=True))
        async with tx.transaction():
            assert await d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""), tx)
            assert await hand.claim() == []
        assert [event.name for event in (await hand.take("a")).events] == ["news"]


async def test_a_refused_call_leaves_the_callers_transaction_usable() -> None:  # B6
    async with desk() as d, connection_to(d.url) as tx:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(finish(run))
        async with tx.transaction():
            with pytest.raises(ExecutionAlreadyExists):
                await d.scheduler.start([new("b"), new("a", task="other")], tx)
            with pytest.raises(ExecutionFinished):
                await d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""), tx)
            with pytest.raises(ExecutionNotFound):
                await d.scheduler.offer_event(Offer(execution_id="nobody", name="news", payload=b""), tx)
            await d.scheduler.start([new("c")], tx)
        assert await d.scheduler.get("b") is None
        assert await hand.claim_ids() == ["c"]


async def test_a_connection_of_a_pool_will_do() -> None:  # B6
    async with desk() as d, asyncpg.create_pool(d.url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as tx, tx.transaction():
            await d.scheduler.start([new("a")], tx)
        assert await d.scheduler.get("a") is not None


async def test_what_cannot_be_such_a_connection_is_refused() -> None:  # B6
    async with desk() as d:
        with pytest.raises(TypeError, match="asyncpg connection"):
            await d.scheduler.start([new("a")], object())
        with pytest.raises(ValueError, match="no open transaction"):
            await d.scheduler.start([new("a")], d.sql)
        async with connection_to(d.url.replace("/" + d.url.split("/")[3].split("?")[0], "/postgres")) as elsewhere:
            async with elsewhere.transaction():
                with pytest.raises(ValueError, match="does not see the tables"):
                    await d.scheduler.start([new("a")], elsewhere)
                assert await elsewhere.fetchval("SELECT 1") == 1


async def test_closing_during_a_callers_transaction_touches_nothing_of_it() -> None:
    async with desk() as d, connection_to(d.url) as tx:
        async with tx.transaction():
            await d.scheduler.start([new("a")], tx)
            await d.scheduler.close()
        await d.scheduler.open()

        async def there() -> bool:
            return await d.scheduler.get("a") is not None

        await until(there)
