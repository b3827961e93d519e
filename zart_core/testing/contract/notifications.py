"""Notifications: hints, heard on the subscriber's loop.

They may be lost, so what is to be heard is done again until it is. Only a backend that never says anything fails.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from zart_core.records import Notification
from zart_core.testing.contract.bench import Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import child, finish, suspend

PATIENCE: Final = 0.5
TRIES: Final = 20


class NotificationContract(Contract):
    @on_bench
    async def test_a_start_is_heard(self, bench: Bench) -> None:
        async def act(n: int) -> None:
            await bench.start(f"a-{n}")

        await _heard(bench, act, lambda notice: notice.ready)

    @on_bench
    async def test_an_event_for_a_running_execution_is_heard(self, bench: Bench) -> None:
        hand, run = await bench.running("a")

        async def act(n: int) -> None:
            await bench.offer("a")

        await _heard(bench, act, lambda notice: notice.signals is None or run.run_id in notice.signals)
        assert await hand.signals(run) != []

    @on_bench
    async def test_an_event_that_wakes_a_run_is_heard_as_work(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        held = [run]

        async def act(n: int) -> None:
            if n:
                held[0] = await hand.take("a")
            await hand.record(suspend(held[0], on_signal=True))
            await bench.offer("a")

        await _heard(bench, act, lambda notice: notice.ready)

    @on_bench
    async def test_a_cancellation_of_a_running_execution_is_heard(self, bench: Bench) -> None:
        hand = await bench.hand()
        run_ids: set[int] = set()

        async def act(n: int) -> None:
            await bench.start(f"a-{n}")
            run = await hand.take(f"a-{n}")
            run_ids.add(run.run_id)
            await bench.scheduler.cancel(f"a-{n}", None)

        await _heard(bench, act, lambda notice: notice.signals is None or bool(run_ids & notice.signals))

    @on_bench
    async def test_a_cancellation_that_finishes_is_heard(self, bench: Bench) -> None:
        async def act(n: int) -> None:
            await bench.start(f"a-{n}")
            await bench.scheduler.cancel(f"a-{n}", None)

        await _heard(bench, act, lambda notice: notice.finished is None or any(i[:2] == "a-" for i in notice.finished))

    @on_bench
    async def test_a_finish_is_heard(self, bench: Bench) -> None:
        hand = await bench.hand()

        async def act(n: int) -> None:
            await bench.start(f"a-{n}")
            await hand.record(finish(await hand.take(f"a-{n}")))

        await _heard(bench, act, lambda notice: notice.finished is None or any(i[:2] == "a-" for i in notice.finished))

    @on_bench
    async def test_the_start_of_a_child_is_heard_as_work(self, bench: Bench) -> None:  # B35
        hand, parent = await bench.running("p")

        async def act(n: int) -> None:
            await hand.record(child(parent, f"call-{n}", new(f"c-{n}")))

        await _heard(bench, act, lambda notice: notice.ready)
        await bench.scheduler.cancel("p", None)
        await hand.flush(finish(parent, "cancelled"))

    @on_bench
    async def test_a_child_that_ends_is_heard_by_who_holds_its_parent(self, bench: Bench) -> None:  # B36
        hand, parent = await bench.running("p")

        async def act(n: int) -> None:
            await hand.record(child(parent, f"call-{n}", new(f"c-{n}")))
            await hand.record(finish(await hand.take(f"c-{n}")))

        await _heard(bench, act, lambda notice: notice.signals is None or parent.run_id in notice.signals)

    @on_bench
    async def test_a_last_child_that_ends_is_heard_as_work(self, bench: Bench) -> None:  # B36
        hand = await bench.hand()
        ending = False

        async def act(n: int) -> None:
            nonlocal ending
            _, parent = await bench.running(f"p-{n}", hand)
            await hand.record(child(parent, "call", new(f"c-{n}")), suspend(parent, on_children=True))
            run = await hand.take(f"c-{n}")
            ending = True
            await hand.record(finish(run))
            await hand.take(f"p-{n}")

        await _heard(bench, act, lambda notice: ending and notice.ready)

    @on_bench
    async def test_a_release_is_heard_as_work(self, bench: Bench) -> None:  # B59
        async def act(n: int) -> None:
            hand = await bench.hand()
            await hand.claim()
            await hand.deregister()

        await bench.start("a")
        await _heard(bench, act, lambda notice: notice.ready)

    @on_bench
    async def test_every_listener_hears(self, bench: Bench) -> None:
        first, second = asyncio.Event(), asyncio.Event()
        ends = [
            bench.scheduler.subscribe(lambda notice: first.set() if notice.ready else None),
            bench.scheduler.subscribe(lambda notice: second.set() if notice.ready else None),
        ]

        async def act(n: int) -> None:
            await bench.start(f"a-{n}")

        await _heard(bench, act, lambda notice: first.is_set() and second.is_set())
        for end in ends:
            end()

    @on_bench
    async def test_an_ended_subscription_hears_nothing_more(self, bench: Bench) -> None:
        late: list[Notification] = []
        end = bench.scheduler.subscribe(late.append)
        end()

        async def act(n: int) -> None:
            await bench.start(f"a-{n}")

        await _heard(bench, act, lambda notice: notice.ready)
        assert late == []


async def _heard(bench: Bench, act: Callable[[int], Awaitable[None]], wanted: Callable[[Notification], bool]) -> None:
    """Do ``act`` until a wanted notification is heard, and see that it comes on this loop and thread."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    heard = asyncio.Event()
    strays: list[str] = []

    def listen(notice: Notification) -> None:
        if threading.get_ident() != thread or asyncio.get_running_loop() is not loop:
            strays.append(threading.current_thread().name)
        elif wanted(notice):
            heard.set()

    end = bench.scheduler.subscribe(listen)
    try:
        for n in range(TRIES):
            await act(n)
            try:
                async with asyncio.timeout(PATIENCE):
                    await heard.wait()
            except TimeoutError:
                continue
            break
    finally:
        end()
    assert not strays, f"called on other threads than the subscriber's: {strays}"
    assert heard.is_set(), f"done {TRIES} times and never heard of"
