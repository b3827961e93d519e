"""Steps that must not run again when nobody knows whether they took effect."""

from __future__ import annotations

import asyncio

from tests.behaviour.world import World
from zart_core import Ok, StepInterrupted, TaskContext, TaskHandler, Worker, ZartErr


class Charging(TaskHandler[None, str]):
    """Charges a card: ``failures`` attempts are refused, then the bank does not answer until the test says so."""

    name = "charging"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0
        self.hangs = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        match await ctx.outcome("charge", self.charge, retry="fixed(3, 1ms)", at_most_once=True):
            case Ok(value):
                return value
            case ZartErr(StepInterrupted() as error):
                return f"unknown after {error.attempts}"
            case other:
                return repr(other)

    async def charge(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionRefusedError("the bank is closed")
        self.hangs.set()
        await asyncio.Event().wait()
        return "charged"


def _lose_lease(worker: Worker) -> None:
    assert worker.tenure is not None
    worker.tenure.lease.lose()


async def test_an_attempt_that_was_interrupted_is_not_repeated(world: World) -> None:
    handler = Charging(failures=0)
    world.register(handler)
    async with world.worker() as worker:
        handle = await world.client.start(Charging, None)
        await handler.hangs.wait()
        _lose_lease(worker)
        assert await handle.result("10s") == "unknown after 1"
    assert handler.calls == 1


async def test_nor_is_one_that_followed_a_refused_attempt(world: World) -> None:
    handler = Charging(failures=2)
    world.register(handler)
    async with world.worker() as worker:
        handle = await world.client.start(Charging, None)
        await handler.hangs.wait()
        _lose_lease(worker)
        assert await handle.result("10s") == "unknown after 3"
    assert handler.calls == 3


async def test_refused_attempts_are_retried_as_for_any_step(world: World) -> None:
    handler = Charging(failures=9)
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Charging, None)
        assert "RetryExhausted" in await handle.result("10s")
    assert handler.calls == 4
