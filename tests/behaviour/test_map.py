"""map: many items at once, with a bound that holds over all workers (B40)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import ExecutionFailed, TaskContext, TaskHandler
from zart_core.testing import TestEngine


class Mapper(TaskHandler[int, list[int]]):
    """Counts how many of its steps run at once, here and in any worker that shares the object."""

    name = "mapper"

    def __init__(self, concurrency: int | None = 10, local: bool = False) -> None:
        self.concurrency = concurrency
        self.local = local
        self.now = self.most = 0
        self.ran: list[int] = []

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        fn: Any = (lambda item: self.work(item)) if self.local else self.work
        return await ctx.map("item", range(data), fn, concurrency=self.concurrency, retry="fixed(1, 1ms)")

    async def work(self, item: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        self.ran.append(item)
        try:
            await asyncio.sleep(0)
            if item % 7 == 3 and self.ran.count(item) == 1:
                raise RuntimeError("once")
            return -item
        finally:
            self.now -= 1


async def test_never_more_than_the_bound_at_once_over_all_workers(world: World) -> None:  # B40
    mapper = Mapper()
    registry = registry_of(mapper)
    async with world.worker(registry=registry, concurrency=20), world.worker(registry=registry, concurrency=20):
        handle = await world.client.start(Mapper, 1_000)
        assert await handle.result("60s") == [-i for i in range(1_000)]
    assert 2 <= mapper.most <= 10
    assert len(mapper.ran) == 1_000 + len(range(3, 1_000, 7))


async def test_the_bound_holds_for_steps_of_the_owner(world: World) -> None:  # B40
    mapper = Mapper(concurrency=4, local=True)
    world.register(mapper)
    assert await world.run(Mapper, 60) == [-i for i in range(60)]
    assert 2 <= mapper.most <= 4


async def test_without_a_bound_all_run_at_once(world: World) -> None:  # B40
    mapper = Mapper(concurrency=None)
    world.register(mapper)
    assert await world.run(Mapper, 20) == [-i for i in range(20)]


class Patient(TaskHandler[bool, list[int]]):
    """Items whose first attempt fails wait an hour for their next one, inside the bound."""

    name = "patient"

    def __init__(self) -> None:
        self.begun: list[int] = []

    async def run(self, ctx: TaskContext, data: bool) -> list[int]:
        fn: Any = (lambda item: self.work(item)) if data else self.work
        return await ctx.map("item", range(6), fn, concurrency=2, retry="fixed(1, 1h)")

    async def work(self, item: int) -> int:
        self.begun.append(item)
        if self.begun.count(item) == 1:
            raise RuntimeError("not yet")
        return item


@pytest.mark.parametrize("local", [False, True])
async def test_one_that_waits_for_its_next_attempt_counts(replay: Replay, local: bool) -> None:  # B40
    patient = Patient()
    async with TestEngine(registry_of(patient), replay=replay) as engine:
        handle = await engine.start(Patient, local)
        await engine.settle()
        assert sorted(set(patient.begun)) == [0, 1], "others began while the first two were suspended"
        await engine.advance("1h")
        assert sorted(set(patient.begun)) == [0, 1, 2, 3]
        await engine.advance("2h")
        assert await handle.result() == [0, 1, 2, 3, 4, 5]
    assert sorted(patient.begun) == sorted([*range(6)] * 2)


class Held(TaskHandler[None, list[int]]):
    name = "held"

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun: list[int] = []

    async def run(self, ctx: TaskContext, data: None) -> list[int]:
        return await ctx.map("item", range(5), self.work, concurrency=2)

    async def work(self, item: int) -> int:
        self.begun.append(item)
        await self.open.wait()
        if item == 1:
            raise RuntimeError("item 1")
        return item


async def test_the_bound_survives_the_worker(world: World) -> None:  # B40
    first, second = Held(), Held()
    async with world.worker(registry=registry_of(first), drain_timeout=0):
        handle = await world.client.start(Held)

        async def begun() -> bool:
            return len(first.begun) >= 2

        await until(begun, "two have begun")
    assert sorted(first.begun) == [0, 1]
    async with world.worker(registry=registry_of(second)):

        async def again() -> bool:
            return len(second.begun) >= 2

        await until(again, "the two have begun again")
        assert sorted(second.begun) == [0, 1]
        second.open.set()
        with pytest.raises(ExecutionFailed, match="item 1"):  # B37: all have ended by then
            await handle.result("20s")
    assert sorted(second.begun) == [0, 1, 2, 3, 4]


async def test_cancelling_ends_those_that_are_held_back(world: World) -> None:  # B52
    held = Held()
    world.register(held)
    async with world.worker():
        handle = await world.client.start(Held)

        async def begun() -> bool:
            return len(held.begun) >= 2

        await until(begun, "two have begun")
        await handle.cancel()
        assert (await world.client.wait(handle.execution_id, "20s")).status == "cancelled"
        held.open.set()
    assert sorted(held.begun) == [0, 1]


class Wrong(TaskHandler[Any, str]):
    name = "wrong"

    async def run(self, ctx: TaskContext, data: Any) -> str:
        try:
            await ctx.map("item", [1], lambda item: item, concurrency=data)
        except ValueError as error:
            return str(error)
        return "accepted"


@pytest.mark.parametrize("bound", [0, -1, 1.5, True])
async def test_a_bound_that_makes_no_sense_is_refused(world: World, bound: Any) -> None:  # B40
    world.register(Wrong())
    assert "whole number of at least 1" in await world.run(Wrong, bound)
