"""Transactions: a body's writes and a step's row, or a caller's writes and our rows, by one commit. # B6, B54"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from zart_core.errors import BackendUnavailable, ExecutionAlreadyExists, ExecutionFinished, ExecutionNotFound
from zart_core.records import ClaimedRun, Offer, StepRow
from zart_core.scheduler import Scheduler
from zart_core.testing.contract.bench import LAPSE, Bench, Contract, new, on_bench, raises
from zart_core.testing.contract.hand import Hand, completed, failed, finish, pending, step_row, suspend


class TransactContract(Contract):
    # --- a step's ---------------------------------------------------------------------------------------------------------

    @on_bench
    async def test_it_says_which_kind_of_function_it_runs(self, bench: Bench) -> None:
        assert bench.scheduler.transactions in ("async", "plain")

    @on_bench
    async def test_the_body_s_writes_and_the_row_are_there_together(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        row = step_row("pay", output=b"paid", worker_id=hand.worker_id)
        body = words.body(row, "one", "two")
        assert await bench.scheduler.transact(hand.key(run, "pay"), body.work) == row
        assert await words.all() == ["one", "two"]
        assert (await bench.history("a")).steps == [row]

    @on_bench
    async def test_the_next_claim_brings_the_row(self, bench: Bench) -> None:  # B9
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        await bench.scheduler.transact(hand.key(run, "pay"), words.body(step_row("pay", output=b"paid"), "one").work)
        await hand.record(suspend(run, wake_at=0))
        assert [row.output for row in (await hand.take("a")).steps] == [b"paid"]

    @on_bench
    async def test_a_body_reads_what_it_has_written(self, bench: Bench) -> None:
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        body = words.body(step_row("pay"), "one")
        body.statements.append("SELECT word FROM bench_words")
        await bench.scheduler.transact(hand.key(run, "pay"), body.work)
        assert body.found == ["one"]

    @on_bench
    async def test_an_error_undoes_everything_and_is_raised(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        body = words.body(step_row("pay"), "one", error=KeyError("no such account"))
        paying = asyncio.create_task(bench.scheduler.transact(hand.key(run, "pay"), body.work))
        await asyncio.wait((paying,))
        assert paying.exception() is body.error
        assert await words.all() == []
        assert (await bench.history("a")).steps == []

    @on_bench
    async def test_after_an_error_the_same_step_can_be_tried_again(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        with raises(KeyError):
            await bench.scheduler.transact(
                hand.key(run, "pay"), words.body(step_row("pay"), "one", error=KeyError()).work
            )
        await bench.scheduler.transact(hand.key(run, "pay"), words.body(step_row("pay"), "two").work)
        assert await words.all() == ["two"]

    @on_bench
    async def test_an_error_of_the_database_undoes_everything(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        body = words.body(step_row("pay"), "one")
        body.statements.append("INSERT INTO there_is_no_such_table VALUES (1)")
        with raises(Exception):
            await bench.scheduler.transact(hand.key(run, "pay"), body.work)
        assert await words.all() == []
        assert (await bench.history("a")).steps == []

    @on_bench
    async def test_a_finished_step_is_answered_without_its_body(self, bench: Bench) -> None:  # B54, B61
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        first = words.body(step_row("pay", output=b"first"), "one")
        row = await bench.scheduler.transact(hand.key(run, "pay"), first.work)
        again = words.body(step_row("pay", output=b"second"), "two")
        assert await bench.scheduler.transact(hand.key(run, "pay"), again.work) == row
        assert (first.runs, again.runs) == (1, 0)
        assert await words.all() == ["one"]

    @on_bench
    async def test_a_step_that_a_flush_has_finished_is_answered_without_its_body(self, bench: Bench) -> None:  # B9
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        facts = {"done": completed(run, "done"), "broken": failed(run, "broken")}
        await hand.record(*facts.values())
        for name, fact in facts.items():
            body = words.body(step_row(name), "never")
            assert await bench.scheduler.transact(hand.key(run, name), body.work) == fact.row
            assert body.runs == 0
        assert await words.all() == []

    @on_bench
    async def test_a_pending_step_is_finished_by_it(self, bench: Bench) -> None:  # B46
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        await hand.record(pending(run, "pay"))
        row = step_row("pay", attempts=3, worker_id=hand.worker_id)
        assert await bench.scheduler.transact(hand.key(run, "pay"), words.body(row, "one").work) == row
        assert (await bench.history("a")).steps == [row]

    @on_bench
    async def test_another_step_s_row_is_not_taken_for_its_own(self, bench: Bench) -> None:
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        _, other = await bench.running("b", hand)
        keys = [(run, "pay", 0), (run, "Pay", 0), (run, "pay", -1), (other, "pay", 0)]
        for number, (owner, name, ordinal) in enumerate(keys):
            body = words.body(step_row(name, ordinal=ordinal), str(number))
            await bench.scheduler.transact(hand.key(owner, name, ordinal), body.work)
        assert await words.all() == ["0", "1", "2", "3"]

    @on_bench
    async def test_whoever_does_not_hold_the_run_does_not_even_run_the_body(self, bench: Bench) -> None:  # B57
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        stranger = await bench.hand(name="stranger")
        key = hand.key(run, "pay")
        keys = [
            stranger.key(run, "pay"),
            replace(key, epoch=run.epoch + 1),
            replace(key, epoch=run.epoch - 1),
            replace(key, run_id=run.run_id + 1_000_000),
        ]
        for key in keys:
            body = words.body(step_row("pay"), "one")
            assert await bench.scheduler.transact(key, body.work) is None, key
            assert body.runs == 0, key
        assert await words.all() == []
        assert (await bench.history("a")).steps == []

    @on_bench
    async def test_a_lease_that_is_over_writes_nothing(self, bench: Bench) -> None:  # B57
        words = await Words.on(bench)
        mortal = await bench.hand(lease=LAPSE)
        await bench.start("suspended", "finished", "freed", "taken")
        runs = {run.execution_id: run for run in await mortal.claim()}
        await mortal.record(suspend(runs["suspended"], on_signal=True), finish(runs["finished"]))
        await bench.bury(mortal)
        await bench.start("later")
        heir = await bench.hand(name="heir")
        await heir.claim(limit=1)
        for name, run in runs.items():
            body = words.body(step_row("pay"), name)
            assert await bench.scheduler.transact(mortal.key(run, "pay"), body.work) is None, name
            assert (await bench.history(name)).steps == [], name
        assert await words.all() == []

    @on_bench
    async def test_a_step_that_its_heir_has_finished_is_not_told_to_the_dead(self, bench: Bench) -> None:  # B57
        words = await Words.on(bench)
        mortal = await bench.hand(lease=LAPSE)
        _, run = await bench.running("a", mortal)
        await bench.bury(mortal)
        heir = await bench.hand(name="heir")
        taken = await heir.take("a")
        await bench.scheduler.transact(heir.key(taken, "pay"), words.body(step_row("pay"), "heir").work)
        assert await bench.scheduler.transact(mortal.key(run, "pay"), words.body(step_row("pay"), "dead").work) is None
        assert await words.all() == ["heir"]

    @on_bench
    async def test_a_lease_that_runs_out_beside_the_body_leaves_both_or_neither(self, bench: Bench) -> None:  # B54
        words = await Words.on(bench)
        other = await bench.another() if self.shared_store else bench.scheduler
        mortal = await bench.hand(lease=LAPSE)
        _, run = await bench.running("a", mortal)
        body = words.body(step_row("pay"), "one", held=True)
        paying = asyncio.create_task(bench.scheduler.transact(mortal.key(run, "pay"), body.work))
        await body.reached.wait()
        await bench.pass_time(2 * LAPSE)
        # Where the body keeps others from writing, the burial comes after the commit; elsewhere before.
        burying = asyncio.create_task(other.reap(100))
        await asyncio.wait((burying,), timeout=0.2)
        body.release()
        row = await paying
        assert (await burying).freed == 1
        kept = [] if row is None else ["one"]
        assert await words.all() == kept
        assert len((await bench.history("a")).steps) == len(kept)

    @on_bench
    async def test_a_cancelled_call_undoes_everything(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        body = words.body(step_row("pay"), "one", held=True)
        paying = asyncio.create_task(bench.scheduler.transact(hand.key(run, "pay"), body.work))
        await body.reached.wait()
        paying.cancel()
        await asyncio.sleep(0)
        body.release()
        with raises(asyncio.CancelledError):
            await paying
        assert await words.all() == []
        assert (await bench.history("a")).steps == []
        await bench.scheduler.transact(hand.key(run, "pay"), words.body(step_row("pay"), "two").work)
        assert await words.all() == ["two"]

    @on_bench
    async def test_a_call_cancelled_at_any_moment_tells_how_it_ended(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        kept: list[str] = []
        for turns in range(40):
            name = f"{turns:02}"
            body = words.body(step_row(name), name)
            paying = asyncio.create_task(bench.scheduler.transact(hand.key(run, name), body.work))
            for _ in range(turns):
                await asyncio.sleep(0)
            paying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                kept += [name] if await paying else []
            assert {row.name for row in (await bench.history("a")).steps} == set(kept), name
        assert await words.all() == kept

    @on_bench
    async def test_a_call_cancelled_while_it_waits_for_its_turn_writes_nothing(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        first = words.body(step_row("first"), "first", held=True)
        second = words.body(step_row("second"), "second", held=True)
        paying = asyncio.create_task(bench.scheduler.transact(hand.key(run, "first"), first.work))
        await first.reached.wait()
        waiting = asyncio.create_task(bench.scheduler.transact(hand.key(run, "second"), second.work))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        second.release()
        first.release()
        assert await paying is not None
        with raises(asyncio.CancelledError):
            await waiting
        assert await words.all() == ["first"]
        # Where one body is run after the other, its turn came when nobody waited for it any more.
        assert second.runs == 0 or bench.scheduler.transactions == "async"

    @on_bench
    async def test_many_at_once_are_all_kept(self, bench: Bench) -> None:  # B54
        words = await Words.on(bench)
        hand = await bench.hand()
        await bench.start("a", "b")
        runs = await hand.claim()
        bodies = {
            (run.run_id, n): words.body(step_row(f"pay-{n}"), f"{run.execution_id}-{n}")
            for run in runs
            for n in range(10)
        }
        await asyncio.gather(
            *(
                bench.scheduler.transact(hand.key(run, f"pay-{n}"), bodies[run.run_id, n].work)
                for run in runs
                for n in range(10)
            )
        )
        assert await words.all() == sorted(f"{run.execution_id}-{n}" for run in runs for n in range(10))
        assert {body.runs for body in bodies.values()} == {1}
        for run in runs:
            assert len((await bench.history(run.execution_id)).steps) == 10

    @on_bench
    async def test_a_body_is_not_run_again_for_a_neighbour_that_fails(self, bench: Bench) -> None:  # B54
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        holding = words.body(step_row("holding"), "holding", held=True)
        bodies = [
            words.body(step_row(f"{n}"), f"{n}", error=KeyError(n) if n % 2 else None) for n in range(6)
        ]  # fmt: skip
        held = asyncio.create_task(bench.scheduler.transact(hand.key(run, "holding"), holding.work))
        await holding.reached.wait()
        # Where one transaction is done after the other, these gather meanwhile.
        rest = asyncio.gather(
            *(bench.scheduler.transact(hand.key(run, f"{n}"), body.work) for n, body in enumerate(bodies)),
            bench.start("b"),
            hand.flush(completed(run, "flushed")),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        holding.release()
        answers = await rest
        await held
        assert [isinstance(answer, KeyError) for answer in answers] == [False, True] * 3 + [False, False], answers
        assert [body.runs for body in bodies] == [1] * 6
        assert await words.all() == ["0", "2", "4", "holding"]
        await bench.row("b")

    @on_bench
    async def test_one_step_twice_at_once_takes_effect_once(self, bench: Bench) -> None:  # B61
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        for n in range(10):
            name = f"pay-{n}"
            bodies = [words.body(step_row(name, output=word.encode()), f"{n}") for word in ("left", "right")]
            rows = await asyncio.gather(
                *(bench.scheduler.transact(hand.key(run, name), body.work) for body in bodies)
            )  # fmt: skip
            assert rows[0] is not None
            assert rows[0] == rows[1]
        assert await words.all() == sorted(f"{n}" for n in range(10))

    @on_bench
    async def test_a_closed_scheduler_runs_no_body(self, bench: Bench) -> None:  # B77
        words, (hand, run) = await Words.on(bench), await bench.running("a")
        other = await bench.another()
        await other.close()
        body = words.body(step_row("pay"), "one")
        with raises(BackendUnavailable):
            await other.transact(hand.key(run, "pay"), body.work)
        assert body.runs == 0

    # --- a caller's -------------------------------------------------------------------------------------------------------

    @on_bench
    async def test_a_start_is_seen_by_nobody_before_the_commit(self, bench: Bench) -> None:  # B6
        words, user, hand = await Words.on(bench), Caller(await bench.connection()), await bench.hand()
        tx = await user.begin()
        await user.does(words.insert("order"))
        [started] = await bench.scheduler.start([new("a")], tx)
        assert (started.execution_id, started.created) == ("a", True)
        assert await bench.scheduler.get("a") is None
        await user.commit()
        assert await hand.claim_ids() == ["a"]
        assert await words.all() == ["order"]

    @on_bench
    async def test_a_start_is_gone_after_a_rollback(self, bench: Bench) -> None:  # B6
        words, user, hand = await Words.on(bench), Caller(await bench.connection()), await bench.hand()
        tx = await user.begin()
        await user.does(words.insert("order"))
        await bench.scheduler.start([new("a"), new("b")], tx)
        await user.rollback()
        assert await hand.claim_ids() == []
        assert await bench.scheduler.get("a") is None
        assert await words.all() == []
        [again] = await bench.start("a")
        assert again.created

    @on_bench
    async def test_a_start_by_key_is_part_of_the_transaction(self, bench: Bench) -> None:  # B6
        user = Caller(await bench.connection())
        tx = await user.begin()
        await bench.scheduler.start([new("a", key="k", by_key="singleton")], tx)
        await user.rollback()
        [other] = await bench.scheduler.start([new("b", key="k", by_key="singleton")])
        assert (other.execution_id, other.created) == ("b", True)
        tx = await user.begin()
        [joined] = await bench.scheduler.start([new("c", key="k", by_key="singleton")], tx)
        await user.commit()
        assert (joined.execution_id, joined.created) == ("b", False)

    @on_bench
    async def test_a_transaction_may_be_begun_by_a_statement(self, bench: Bench) -> None:  # B6
        user = Caller(await bench.connection())
        await user.does("BEGIN")
        await bench.scheduler.start([new("a")], user.connection)
        assert await bench.scheduler.offer_event(offer("a"), user.connection)
        await user.does("COMMIT")
        assert len((await bench.history("a")).events) == 1

    @on_bench
    async def test_every_field_of_a_start_is_kept_in_a_transaction(self, bench: Bench) -> None:  # B6
        user = Caller(await bench.connection())
        options = {"queue": "slow", "priority": 7, "tags": {"k": "v"}, "input": b"{}", "timeout": LAPSE * 1_000}
        tx = await user.begin()
        await bench.scheduler.start([new("within", **options)], tx)  # type: ignore[arg-type]
        await user.commit()
        await bench.scheduler.start([new("alone", **options)])  # type: ignore[arg-type]
        within, alone = await bench.row("within"), await bench.row("alone")
        for field in ("task_name", "queue", "priority", "tags", "input", "status", "run"):
            assert getattr(within, field, None) == getattr(alone, field, None), field
        assert (within.deadline is None) == (alone.deadline is None)

    @on_bench
    async def test_a_start_of_an_id_that_exists_changes_nothing_in_a_transaction(self, bench: Bench) -> None:  # B2
        user = Caller(await bench.connection())
        await bench.start("a", input=b"first")
        tx = await user.begin()
        [old, fresh] = await bench.scheduler.start([new("a", input=b"second"), new("b")], tx)
        [again] = await bench.scheduler.start([new("b")], tx)
        await user.commit()
        assert [old.created, fresh.created, again.created] == [False, True, False]
        assert (await bench.row("a")).input == b"first"

    @on_bench
    async def test_a_refused_start_leaves_the_transaction_usable(self, bench: Bench) -> None:  # B3, B6
        words, user = await Words.on(bench), Caller(await bench.connection())
        await bench.start("taken")
        tx = await user.begin()
        await user.does(words.insert("before"))
        with raises(ExecutionAlreadyExists):
            await bench.scheduler.start([new("fresh"), new("taken", task="another")], tx)
        await user.does(words.insert("after"))
        await user.commit()
        assert await words.all() == ["after", "before"]
        assert await bench.scheduler.get("fresh") is None

    @on_bench
    async def test_an_event_is_offered_by_the_commit(self, bench: Bench) -> None:  # B6, B28
        words, user, (hand, run) = await Words.on(bench), Caller(await bench.connection()), await bench.running("a")
        await hand.record(suspend(run, on_signal=True))
        tx = await user.begin()
        await user.does(words.insert("order"))
        assert await bench.scheduler.offer_event(offer("a", b"gone"), tx)
        await user.rollback()
        tx = await user.begin()
        assert await bench.scheduler.offer_event(offer("a", b"kept"), tx)
        await user.commit()
        assert [event.payload for event in (await hand.take("a")).events] == [b"kept"]
        assert await words.all() == []

    @on_bench
    async def test_a_start_and_its_event_in_one_transaction(self, bench: Bench) -> None:  # B6, B28
        user, hand = Caller(await bench.connection()), await bench.hand()
        tx = await user.begin()
        await bench.scheduler.start([new("a")], tx)
        assert await bench.scheduler.offer_event(offer("a", b"news", event_id="1"), tx) is True
        assert await bench.scheduler.offer_event(offer("a", b"again", event_id="1"), tx) is False
        await user.commit()
        assert [event.payload for event in (await hand.take("a")).events] == [b"news"]

    @on_bench
    async def test_a_refused_event_leaves_the_transaction_usable(self, bench: Bench) -> None:  # B6, B32
        words, user, (hand, run) = await Words.on(bench), Caller(await bench.connection()), await bench.running("over")
        await hand.record(finish(run))
        tx = await user.begin()
        await user.does(words.insert("before"))
        with raises(ExecutionNotFound):
            await bench.scheduler.offer_event(offer("nobody"), tx)
        with raises(ExecutionFinished):
            await bench.scheduler.offer_event(offer("over"), tx)
        await bench.scheduler.start([new("b")], tx)
        await user.commit()
        assert await words.all() == ["before"]
        await bench.row("b")

    @on_bench
    async def test_what_is_no_connection_is_refused(self, bench: Bench) -> None:  # B6
        for wrong in ("a connection", 1, object(), bench.scheduler):
            with raises(TypeError):
                await bench.scheduler.start([new("a")], wrong)
            with raises(TypeError):
                await bench.scheduler.offer_event(offer("a"), wrong)
        assert await bench.scheduler.get("a") is None

    @on_bench
    async def test_a_closed_connection_is_refused(self, bench: Bench) -> None:  # B6
        user = Caller(await bench.connection())
        await user.close()
        with raises(ValueError):
            await bench.scheduler.start([new("a")], user.connection)
        assert await bench.scheduler.get("a") is None

    @on_bench
    async def test_a_connection_without_a_transaction_is_refused(self, bench: Bench) -> None:  # B6
        user = Caller(await bench.connection())
        await bench.start("b")
        with raises(ValueError):
            await bench.scheduler.start([new("a")], user.connection)
        with raises(ValueError):
            await bench.scheduler.offer_event(offer("b"), user.connection)
        assert await bench.scheduler.get("a") is None
        assert (await bench.history("b")).events == []


class Words:
    """A table of the user's own in the store's database, written by bodies and callers, and how a test reads it."""

    def __init__(self, bench: Bench, hand: Hand, run: ClaimedRun) -> None:
        self._scheduler: Scheduler = bench.scheduler
        self._hand = hand
        self._run = run
        self._count = 0

    @classmethod
    async def on(cls, bench: Bench) -> Words:
        """A fresh table. An execution in a queue of its own is held for as long as the test lasts: transactions belong to one."""
        hand = await bench.hand(name="reader", queues=("words",))
        await bench.start("words", queue="words")
        words = cls(bench, hand, await hand.take("words"))
        body = words.body(step_row("create"))
        # A store may be one that an earlier test has used: only the engine's own tables are sure to be empty.
        body.statements += ["DROP TABLE IF EXISTS bench_words", "CREATE TABLE bench_words (word TEXT NOT NULL)"]
        await words._transact("create", body)
        return words

    def insert(self, word: str) -> str:
        return f"INSERT INTO bench_words (word) VALUES ('{word}')"  # noqa: S608 - the suite's own words

    def body(self, row: StepRow, *words: str, error: Exception | None = None, held: bool = False) -> Body:
        """A body that inserts ``words`` and then returns ``row``, or raises ``error``; ``held`` as for :class:`Body`."""
        return Body(self._scheduler, row, [self.insert(word) for word in words], error, held)

    async def all(self) -> list[str]:
        """Every word that was committed, sorted."""
        self._count += 1
        body = self.body(step_row(f"read-{self._count}"))
        body.statements.append("SELECT word FROM bench_words ORDER BY word")
        await self._transact(f"read-{self._count}", body)
        return body.found

    async def _transact(self, name: str, body: Body) -> None:
        assert await self._scheduler.transact(self._hand.key(self._run, name), body.work) is not None


class Body:
    """A transaction's body of the kind that the scheduler runs. ``held``: having done its statements it waits for :meth:`release`."""

    def __init__(
        self, scheduler: Scheduler, row: StepRow, statements: list[str], error: Exception | None, held: bool
    ) -> None:
        self.row = row
        self.statements = statements
        self.error = error
        self.runs = 0
        self.found: list[str] = []
        """The first column of what the last statement has found."""
        self.reached = asyncio.Event()
        """Set once the statements are done."""
        self.work: Callable[[Any], Any] = self._async if scheduler.transactions == "async" else self._plain
        self._loop = asyncio.get_running_loop()
        self._go, self._thread_go = asyncio.Event(), threading.Event()
        if not held:
            self.release()

    def release(self) -> None:
        self._go.set()
        self._thread_go.set()

    async def _async(self, connection: Any) -> StepRow:
        self.runs += 1
        for statement in self.statements:
            self.found = [found[0] for found in await connection.fetch(statement)]
        self.reached.set()
        await self._go.wait()
        return self._end()

    def _plain(self, connection: Any) -> StepRow:
        self.runs += 1
        for statement in self.statements:
            self.found = [found[0] for found in connection.execute(statement).fetchall()]
        self._loop.call_soon_threadsafe(self.reached.set)
        if not self._thread_go.wait(30):
            raise TimeoutError("nobody has released the body")
        return self._end()

    def _end(self) -> StepRow:
        if self.error is not None:
            raise self.error
        return self.row


class Caller:
    """A user with a connection of its own, given to the scheduler as ``tx``, of whatever kind it is."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._transaction: Any = None

    async def begin(self) -> Any:
        """Begin a transaction as the driver's users do; the connection, to be given as ``tx``."""
        if hasattr(self.connection, "transaction"):
            self._transaction = self.connection.transaction()
            await self._transaction.start()
        else:
            await self.does("BEGIN")
        return self.connection

    async def commit(self) -> None:
        await (self.does("COMMIT") if self._transaction is None else self._transaction.commit())

    async def rollback(self) -> None:
        await (self.does("ROLLBACK") if self._transaction is None else self._transaction.rollback())

    async def does(self, statement: str) -> None:
        await _when_done(self.connection.execute(statement))

    async def close(self) -> None:
        await _when_done(self.connection.close())


async def _when_done(done: Any) -> None:
    if inspect.isawaitable(done):
        await done


def offer(execution_id: str, payload: bytes = b"", event_id: str | None = None) -> Offer:
    return Offer(execution_id=execution_id, name="news", payload=payload, event_id=event_id)
