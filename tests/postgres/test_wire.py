"""A wire to the server that is cut, or silent: a peer that is gone without a word."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from tests.postgres.hand import Desk, desk
from tests.postgres.wire import Wire
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig, connect
from zart_core.errors import BackendUnavailable
from zart_core.records import Flushed
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import completed, finish
from zart_postgres import PostgresScheduler

T = TypeVar("T")

PATIENCE = "1s"
"""How long the server may take to answer: a busy machine needs a part of it."""


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Desk, Wire, PostgresScheduler]]:
    """A desk, and another scheduler on its database, behind a wire."""
    async with desk() as d, Wire(d.url, command_timeout=PATIENCE, connect_timeout="1s").open() as wire:
        scheduler = connect(wire.url)
        assert isinstance(scheduler, PostgresScheduler)
        async with scheduler:
            yield d, wire, scheduler


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call as whoever makes it does: again, when it is not answered in time."""
    for _ in range(4):
        with contextlib.suppress(BackendUnavailable):
            return await call()
    return await call()


async def test_a_connection_that_fell_silent_is_given_up_and_the_next_call_goes_by_a_new_one() -> None:  # B61
    async with wired() as (d, wire, there):
        hand = await d.hand(there)
        [run] = await d.running(hand, "a")
        assert wire.silence() >= 3
        wire.restore()  # for new ones
        began = time.monotonic()
        assert await there.get("a") is not None, "a read is done again by itself"
        assert await answered(lambda: hand.flush(completed(run, "x"))) == Flushed()
        assert await answered(hand.claim) == []
        await answered(hand.heartbeat)
        assert time.monotonic() - began < 15, "the wire has been waited for"
        await answered(lambda: hand.flush(finish(run)))


async def test_a_server_that_takes_no_byte_is_said_to_be_unavailable_in_time() -> None:
    async with wired() as (_, wire, there):
        wire.silence()
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            await there.start([new("a")])
        assert time.monotonic() - began < 15
        wire.restore()
        assert (await answered(lambda: there.start([new("b")])))[0].created


class Two(TaskHandler[None, str]):
    """Two steps; the first waits until it may end. Says who has run it."""

    name = "two"

    def __init__(self, who: str, *, may_end: bool) -> None:
        self.who = who
        self.began, self.may_end = asyncio.Event(), asyncio.Event()
        if may_end:
            self.may_end.set()
        self.steps: list[str] = []
        self.stopped = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.step("one", self.one)
            await ctx.step("two", self.two)
        finally:
            self.stopped.set()
        return self.who

    async def one(self) -> None:
        self.steps.append("one")
        self.began.set()
        await self.may_end.wait()

    async def two(self) -> None:
        self.steps.append("two")


async def test_a_worker_that_is_cut_off_goes_no_further_is_replaced_and_rejoins() -> None:  # B57, B58
    lost, heir = Two("lost", may_end=False), Two("heir", may_end=True)
    registries = TaskRegistry(), TaskRegistry()
    registries[0].register(lost)
    registries[1].register(heir)
    async with wired() as (d, wire, there):
        client = DurableScheduler(d.scheduler)
        async with Worker(there, registries[0], WorkerConfig(lease="1s", poll_interval="100ms")):
            handle = await client.start(Two, None, execution_id="a")
            await lost.began.wait()
            wire.silence()
            async with Worker(d.scheduler, registries[1], WorkerConfig(lease="1s", poll_interval="100ms")):
                assert await handle.result("20s") == "heir"
                # Its step ends now, long after its lease: what it returns is nobody's any more.
                lost.may_end.set()
                wire.restore()
                await lost.stopped.wait()
            assert lost.steps == ["one"]
            assert (await client.status("a")).output == "heir"
            assert await client.start_and_wait(Two, None, execution_id="b", timeout="20s") == "lost"
