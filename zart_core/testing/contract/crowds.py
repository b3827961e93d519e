"""Crowds: many workers and clients at once, seeded, none of whom may miss or double anything."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Final

from zart_core.errors import ExecutionFinished
from zart_core.records import ClaimedRun, FinishFact, Offer
from zart_core.scheduler import Scheduler
from zart_core.testing.contract.bench import Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import Hand, completed, finish, suspend, watch

ROUNDS: Final = 40


class CrowdContract(Contract):
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
        assert (await bench.scheduler.reap(100)).freed == 0
        for execution_id, payloads in sent.items():
            got = received[execution_id]
            assert sorted(got) == sorted(payloads), execution_id
            for part in (0, 1):
                assert [p for p in got if int(p) % 2 == part] == payloads[part::2], (
                    "events of one sender changed places"
                )

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
                    await view.offer_event(Offer(execution_id=execution_id, name="news", payload=b""))

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
                [signals] = await hand.look(watch(run, seen))
                inbox += [event.payload for event in signals.events]
                seen = signals.signal_seq
        if all_offered and not runs:
            return
        await asyncio.sleep(0)


async def _offer_each(view: Scheduler, execution_id: str, payloads: list[bytes], dice: random.Random) -> None:
    for payload in payloads:
        assert await view.offer_event(Offer(execution_id=execution_id, name="news", payload=payload))
        for _ in range(dice.randint(0, 3)):
            await asyncio.sleep(0)
