"""Races: two do at once what only one of them may win. Several schedulers, seeded, without a clock to order events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Final, TypeVar

from zart_core.errors import LeaseLost
from zart_core.records import Flushed, HistoryRow, Offer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import completed, finish, publish, suspend

T = TypeVar("T")
U = TypeVar("U")
ROUNDS: Final = 40


class RaceContract(Contract):
    @on_bench
    async def test_a_suspension_and_an_event_at_once_never_both_miss_the_other(self, bench: Bench) -> None:  # B28
        views = await bench.views(2)
        hand = await bench.hand(views[0])
        _, run = await bench.running("a", hand)
        for n in range(ROUNDS):
            first, second = hand.flush(suspend(run, on_signal=True)), views[1].offer_event(_offer("a", n))
            flushed, offered = await _either_order(first, second, n)
            assert offered
            if flushed == Flushed():
                run = await hand.take("a")
            else:
                assert flushed == Flushed(refused=frozenset((run.run_id,)))
                [signals] = await hand.signals(run)
                await hand.record(suspend(run, wake_at=0, seen=signals.signal_seq))
                run = await hand.take("a")
            assert len(run.events) == n + 1

    @on_bench
    async def test_calls_that_fail_do_not_spoil_their_neighbours(self, bench: Bench) -> None:
        views = await bench.views(2)
        hand, run = await bench.running("a")
        for n in range(10):
            view = views[n % 2]
            answers = await asyncio.gather(
                view.start([new(f"before-{n}")]),
                view.start([new(f"poisoned-{n}"), new("\udc00")]),
                view.offer_event(_offer("nobody", n)),
                view.offer_event(_offer("a", n)),
                view.heartbeat(hand.worker_id + 1_000, LONG),
                hand.flush(completed(run, f"step-{n}")),
                view.cancel("nobody", None),
                view.start([new(f"after-{n}")]),
                return_exceptions=True,
            )
            failed = [isinstance(answer, Exception) for answer in answers]
            # Whether text that is no text can be stored is the store's affair.
            assert failed == [False, failed[1], True, False, True, False, True, False], answers
            assert (await view.get(f"poisoned-{n}") is None) == failed[1]
        history = await bench.history("a")
        assert (len(history.steps), len(history.events)) == (10, 10)
        for n in range(10):
            await bench.row(f"before-{n}")
            await bench.row(f"after-{n}")

    @on_bench
    async def test_one_event_id_at_once_is_delivered_once(self, bench: Bench) -> None:  # B30
        views = await bench.views(4)
        await bench.start("a")
        for n in range(15):
            offers = [view.offer_event(_offer("a", n, event_id=f"id-{n}")) for view in views for _ in range(3)]
            assert sum(await asyncio.gather(*offers)) == 1
        assert [event.payload for event in (await bench.history("a")).events] == [str(n).encode() for n in range(15)]

    @on_bench
    async def test_a_finish_and_a_cancellation_at_once_have_one_winner(self, bench: Bench) -> None:  # B52
        views = await bench.views(2)
        hand = await bench.hand(views[0])
        outcomes: Counter[str] = Counter()
        for n in range(ROUNDS):
            _, run = await bench.running(f"a-{n}", hand)
            flushed, cancelled = await _either_order(
                hand.flush(finish(run, output=b"done")), views[1].cancel(f"a-{n}", "enough"), n
            )
            if cancelled:
                assert flushed.refused == flushed.cancelled == {run.run_id}
                await hand.flush(finish(run, "cancelled"))
            else:
                assert flushed == Flushed()
            outcomes[(await bench.row(f"a-{n}")).status] += 1
            assert (await bench.row(f"a-{n}")).status == ("cancelled" if cancelled else "completed")
        assert sum(outcomes.values()) == ROUNDS

    @on_bench
    async def test_a_suspension_and_a_cancellation_at_once_never_both_miss_the_other(self, bench: Bench) -> None:  # B52
        views = await bench.views(2)
        hand = await bench.hand(views[0])
        for n in range(ROUNDS):
            cleanup = n % 4 < 2
            _, run = await bench.running(f"a-{n}", hand)
            flushed, cancelled = await _either_order(
                hand.flush(suspend(run, bench.now() + LONG, cleanup=cleanup)), views[1].cancel(f"a-{n}", None), n
            )
            assert cancelled
            row = await bench.row(f"a-{n}")
            if run.run_id in flushed.refused:
                assert (row.status, row.cancel_requested) == ("running", True)
                await hand.flush(finish(run, "cancelled"))
            elif cleanup:
                again = await hand.take(f"a-{n}")
                assert again.cancel_requested
                await hand.flush(finish(again, "cancelled"))
            else:
                assert row.status == "cancelled"

    @on_bench
    async def test_a_claim_and_a_cancellation_at_once_agree(self, bench: Bench) -> None:  # B52
        views = await bench.views(2)
        hand = await bench.hand(views[0])
        for n in range(ROUNDS):
            await bench.start(f"a-{n}")
            runs, cancelled = await _either_order(hand.claim(), views[1].cancel(f"a-{n}", None), n)
            assert cancelled
            if not runs:
                assert (await bench.row(f"a-{n}")).status == "cancelled"
                continue
            [run] = runs
            assert run.run_id in (await hand.flush(finish(run))).refused
            await hand.flush(finish(run, "cancelled"))

    @on_bench
    async def test_a_reaper_and_a_last_flush_have_one_winner(self, bench: Bench) -> None:  # B57
        views = await bench.views(2)
        heir = await bench.hand(views[1])
        for n in range(10):
            mortal = await bench.hand(views[0], lease=LAPSE)
            _, run = await bench.running(f"a-{n}", mortal)
            await bench.pass_time(2 * LAPSE)
            flushed, reaped = await _either_order(
                mortal.flush(completed(run, "x"), finish(run, output=b"done")), views[1].reap(100), n
            )
            if flushed == Flushed():
                assert reaped.freed == 0
                assert (await bench.row(f"a-{n}")).output == b"done"
            else:
                assert flushed == Flushed(lost=frozenset((run.run_id,)))
                assert reaped.freed == 1
                again = await heir.take(f"a-{n}")
                assert again.steps == []
                await heir.record(finish(again))
            # Finished workers of this round must not be counted in the next.
            await views[1].reap(100)

    @on_bench
    async def test_a_reaper_and_a_late_heartbeat_or_claim_have_one_winner(self, bench: Bench) -> None:  # B57
        views = await bench.views(2)
        heir = await bench.hand(views[1])
        for n in range(12):
            mortal = await bench.hand(views[0], lease=LAPSE)
            _, run = await bench.running(f"a-{n}", mortal)
            await bench.start(f"b-{n}")
            await bench.pass_time(2 * LAPSE)
            mortal.lease = LONG
            late = _or_lost(mortal.claim()) if n % 4 < 2 else _or_lost(mortal.heartbeat())
            lost, reaped = await _either_order(late, views[1].reap(100), n)
            assert reaped.freed == (1 if lost else 0)
            flushed = await mortal.flush(completed(run, "x"))
            assert flushed.lost == ({run.run_id} if lost else set())
            await mortal.deregister()
            rest = await heir.claim()
            assert {taken.execution_id for taken in rest} == {f"a-{n}", f"b-{n}"}
            await heir.record(*(finish(taken) for taken in rest))

    @on_bench
    async def test_a_claim_brings_all_that_the_last_owner_made_durable(self, bench: Bench) -> None:  # B9
        views = await bench.views(2)
        await bench.start("a")
        hand = await bench.hand(views[0])
        run = await hand.take("a")
        durable: set[str] = set()
        for n in range(ROUNDS):
            names = [f"step-{n}-{m}" for m in range(3)]
            leaves = views[1].deregister(hand.worker_id)
            answers = await asyncio.gather(*(hand.flush(completed(run, name)) for name in names), leaves)
            durable |= {name for name, flushed in zip(names, answers, strict=False) if flushed == Flushed()}
            hand = await bench.hand(views[n % 2])
            run = await hand.take("a")
            assert {row.name for row in run.steps} == durable

    @on_bench
    async def test_a_reader_sees_a_flush_wholly_or_not_at_all(self, bench: Bench) -> None:
        views = await bench.views(2)
        hand, run = await bench.running("a", await bench.hand(views[0]))

        async def write() -> None:
            for n in range(ROUNDS):
                value = str(n).encode()
                await hand.record(completed(run, f"x-{n}"), publish(run, "n", value), completed(run, f"y-{n}"))
            await hand.record(completed(run, "end"), finish(run, output=b"done"))

        writing = asyncio.create_task(write())
        seen = 0
        while not writing.done():
            history = await views[1].history("a")
            assert history is not None
            assert _is_whole(history)
            assert len(history.steps) >= seen
            seen = len(history.steps)
        await writing
        assert _is_whole(await bench.history("a"))


async def _either_order(first: Awaitable[T], second: Awaitable[U], number: int) -> tuple[T, U]:
    """Await both at once; every other time the second is begun first."""
    if number % 2:
        answer, other = await asyncio.gather(second, first)
        return other, answer
    return await asyncio.gather(first, second)


async def _or_lost(call: Awaitable[object]) -> bool:
    """Whether the lease was lost."""
    try:
        await call
    except LeaseLost:
        return True
    return False


def _offer(execution_id: str, number: int, *, event_id: str | None = None) -> Offer:
    return Offer(execution_id=execution_id, name="news", payload=str(number).encode(), event_id=event_id)


def _is_whole(history: HistoryRow) -> bool:
    names = {row.name for row in history.steps}
    return {name[1:] for name in names if name[0] == "x"} == {name[1:] for name in names if name[0] == "y"} and (
        ("end" in names) == (history.execution.status == "completed")
    )
