"""Races: two do at once what only one of them may win. Several schedulers, seeded, without a clock to order events."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable
from typing import Final, TypeVar

from zart_core.errors import ExecutionFinished, LeaseLost
from zart_core.records import ClaimedRun, FinishFact, Flushed, HistoryRow, Offer
from zart_core.scheduler import Scheduler
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import Hand, completed, finish, publish, suspend, watch

T = TypeVar("T")
U = TypeVar("U")
ROUNDS: Final = 40


class RaceContract(Contract):
    @on_bench
    async def test_no_event_is_lost_between_offers_and_suspensions(self, bench: Bench) -> None:  # B28
        dice = random.Random(28)
        views = await bench.views(2)
        hands = [await bench.hand(view, name=f"worker-{n}") for n, view in enumerate((*views, *views))]
        received: dict[str, list[bytes]] = {f"a-{n}": [] for n in range(6)}
        sent = {execution_id: [str(n).encode() for n in range(300)] for execution_id in received}
        await bench.start(*received)
        offering = asyncio.Event()

        async def offer() -> None:
            offers = [
                _offer_each(view, execution_id, payloads[part::2], random.Random(dice.random()))
                for execution_id, payloads in sent.items()
                for part, view in enumerate(views)
            ]
            await asyncio.gather(*offers)
            offering.set()

        await asyncio.gather(offer(), *(_receive(hand, received, offering, dice) for hand in hands))
        # Whoever waits now waits for nothing: every payload was there in time to wake it.
        assert await bench.scheduler.reap(100) == 0
        for execution_id, payloads in sent.items():
            got = received[execution_id]
            assert sorted(got) == sorted(payloads), execution_id
            for part in (0, 1):
                assert [p for p in got if int(p) % 2 == part] == payloads[part::2], (
                    "events of one sender changed places"
                )

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
    async def test_many_claimers_claim_every_run_once(self, bench: Bench) -> None:  # B55
        dice = random.Random(55)
        views = await bench.views(3)
        hands = [await bench.hand(views[n % 3]) for n in range(9)]
        await bench.scheduler.start([new(f"a-{n}", priority=n % 3) for n in range(400)])

        async def drain(hand: Hand) -> list[str]:
            mine: list[str] = []
            while runs := await hand.claim(limit=dice.randint(1, 9)):
                mine += [run.execution_id for run in runs]
            return mine

        claimed = Counter(i for mine in await asyncio.gather(*(drain(hand) for hand in hands)) for i in mine)
        assert claimed == Counter({f"a-{n}": 1 for n in range(400)})

    @on_bench
    async def test_claiming_while_starting_misses_nothing(self, bench: Bench) -> None:
        views = await bench.views(2)
        hand = await bench.hand(views[0])
        claimed: list[str] = []

        async def start() -> None:
            for n in range(ROUNDS):
                await views[1].start([new(f"a-{n}-{m}") for m in range(5)])

        starting = asyncio.create_task(start())
        while len(claimed) < ROUNDS * 5:
            all_started = starting.done()
            found = await hand.claim_ids(limit=7)
            claimed += found
            assert found or not all_started, "what was started is not found"
        await starting
        assert sorted(claimed) == sorted(f"a-{n}-{m}" for n in range(ROUNDS) for m in range(5))

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
            flushed, freed = await _either_order(
                mortal.flush(completed(run, "x"), finish(run, output=b"done")), views[1].reap(100), n
            )
            if flushed == Flushed():
                assert freed == 0
                assert (await bench.row(f"a-{n}")).output == b"done"
            else:
                assert flushed == Flushed(lost=frozenset((run.run_id,)))
                assert freed == 1
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
            lost, freed = await _either_order(late, views[1].reap(100), n)
            assert freed == (1 if lost else 0)
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

    @on_bench
    async def test_everyone_at_once_ends_everything_once(self, bench: Bench) -> None:  # B55, B61, B79
        views = await bench.views(3)
        storm = _Storm(bench, views, random.Random(79))
        await storm.blow()
        for execution_id in storm.ids:
            history = await bench.history(execution_id)
            names = [step.name for step in history.steps]
            assert len(names) == len(set(names))
            assert set(names) == storm.steps[execution_id], execution_id
            # A run that was cancelled at once was finished by nobody; any other by exactly one worker.
            at_once = history.execution.status == "cancelled" and not storm.ends[execution_id]
            assert at_once or storm.ends[execution_id] == [history.execution.status]


class _Storm:
    """Workers that step, suspend, leave and finish, while clients start, offer and cancel, all on one store at once."""

    def __init__(self, bench: Bench, views: list[Scheduler], dice: random.Random) -> None:
        self.bench = bench
        self.views = views
        self.dice = dice
        self.ids = [f"a-{n}" for n in range(40)]
        self.steps: dict[str, set[str]] = {execution_id: set() for execution_id in self.ids}
        self.ends: dict[str, list[str]] = {execution_id: [] for execution_id in self.ids}
        self.over = False

    async def blow(self) -> None:
        await self.bench.start(*self.ids)
        await asyncio.gather(*(self._work(view) for view in (*self.views, *self.views)), self._ask(), self._watch())

    async def _work(self, view: Scheduler) -> None:
        hand = await self.bench.hand(view)
        while not self.over:
            for run in await hand.claim(limit=self.dice.randint(1, 5)):
                await self._drive(hand, run)
            if self.dice.random() < 0.1:
                await hand.deregister()
                hand = await self.bench.hand(view)

    async def _drive(self, hand: Hand, run: ClaimedRun) -> None:
        """A step, then perhaps one of the three ends: leave it to the next claim, complete it, obey a cancellation."""
        name = f"step-{run.epoch}"
        end = finish(run) if self.dice.random() < 0.4 else suspend(run, wake_at=0, cleanup=self.dice.random() < 0.5)
        flushed = await hand.flush(completed(run, name), end)
        assert not flushed.lost, "nobody took it away"
        self.steps[run.execution_id].add(name)
        if run.run_id in flushed.refused:
            assert run.run_id in flushed.cancelled
            end = finish(run, "cancelled")
            flushed = await hand.flush(end)
            assert not flushed.refused
        if isinstance(end, FinishFact):
            self.ends[run.execution_id].append(end.status)

    async def _ask(self) -> None:
        for n, execution_id in enumerate(self.dice.sample(self.ids, len(self.ids))):
            view = self.views[n % len(self.views)]
            if n % 4 == 0:
                await view.cancel(execution_id, None)
            elif n % 4 == 1:
                assert [started.created for started in await view.start([new(execution_id)])] == [False]
            else:
                with contextlib.suppress(ExecutionFinished):
                    await view.offer_event(_offer(execution_id, n))

    async def _watch(self) -> None:
        while not self.over:
            settled = await self.views[-1].settled(self.ids)
            self.over = len(settled.finished) == len(self.ids)


async def _receive(hand: Hand, received: dict[str, list[bytes]], offered: asyncio.Event, dice: random.Random) -> None:
    """Claim, read, suspend until the next event; return when everything was offered and nothing is claimable."""
    while True:
        all_offered = offered.is_set()
        runs = await hand.claim(limit=dice.randint(1, 3))
        for run in runs:
            inbox = received[run.execution_id]
            inbox += [event.payload for event in run.events[len(inbox) :]]
            seen = run.signal_seq
            while (await hand.flush(suspend(run, on_signal=True, seen=seen))).refused:
                [signals] = await hand.scheduler.signals([watch(run, seen)], hand.worker_id)
                inbox += [event.payload for event in signals.events]
                seen = signals.signal_seq
        if all_offered and not runs:
            return
        await asyncio.sleep(0)


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


async def _offer_each(view: Scheduler, execution_id: str, payloads: list[bytes], dice: random.Random) -> None:
    for payload in payloads:
        assert await view.offer_event(Offer(execution_id=execution_id, name="news", payload=payload))
        for _ in range(dice.randint(0, 3)):
            await asyncio.sleep(0)


def _is_whole(history: HistoryRow) -> bool:
    names = {row.name for row in history.steps}
    return {name[1:] for name in names if name[0] == "x"} == {name[1:] for name in names if name[0] == "y"} and (
        ("end" in names) == (history.execution.status == "completed")
    )
