"""The primary dies under load and its standby is promoted: what was acknowledged, and what is left of it. # B61"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.postgres.hand import until
from tests.postgres.replication import Replication, connected, replication
from tests.postgres.server import NEWEST, VERSIONS
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig, context
from zart_core.errors import BackendUnavailable, ExecutionNotFound
from zart_postgres import PostgresScheduler

T = TypeVar("T")

_STEPS = 8
_RECORDED = """
    SELECT r.execution_id, array_agg(s.name ORDER BY s.name) FILTER (WHERE s.status = 'completed') AS names
    FROM zart.runs AS r LEFT JOIN zart.steps AS s ON s.run_id = r.run_id GROUP BY r.execution_id
"""
_COMPLETED = """
    SELECT r.execution_id FROM zart.results AS x JOIN zart.runs AS r ON r.run_id = x.run_id WHERE x.status = 'completed'
"""


class Ledger:
    """What the outside world knows: which bodies ran, and what was acknowledged to whom."""

    def __init__(self) -> None:
        self.started: set[str] = set()
        self.seen: dict[str, set[str]] = defaultdict(set)
        self.completed: set[str] = set()
        self.bodies: Counter[tuple[str, str]] = Counter()
        self.repeated: list[tuple[str, str]] = []
        """Bodies that ran though their result had been seen."""

    @property
    def count(self) -> int:
        return sum(map(len, self.seen.values()))

    def begin(self, execution_id: str, step: str) -> None:
        self.bodies[execution_id, step] += 1
        if step in self.seen[execution_id]:
            self.repeated.append((execution_id, step))


class Chain(TaskHandler[int, int]):
    """Steps one after another; what it sees of each it tells the ledger."""

    name = "chain"

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def run(self, ctx: TaskContext, data: int) -> int:
        for number in range(data):
            name = f"step-{number}"
            assert await ctx.step(name, self.step, name) == name
            self._ledger.seen[ctx.execution_id].add(name)
        return data

    async def step(self, name: str) -> str:
        self._ledger.begin(context().execution_id, name)
        await asyncio.sleep(0.005)
        return name


class Load:
    """Executions that are started one after the other, and whose results are waited for, until told to stop."""

    def __init__(self, client: DurableScheduler, ledger: Ledger) -> None:
        self.ledger = ledger
        self.client = client
        self._stopping = asyncio.Event()
        self._waiting: list[asyncio.Task[None]] = []
        self.tried: list[str] = []

    async def go_on(self) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            # No more at once than the workers get done.
            while len(self.tried) - len(self.ledger.completed) > 40 and not self._stopping.is_set():
                await asyncio.sleep(0.005)
            execution_id = f"e{number}"
            self.tried.append(execution_id)
            await reached(lambda name=execution_id: self.client.start("chain", _STEPS, execution_id=name))
            self.ledger.started.add(execution_id)
            self._waiting.append(asyncio.create_task(self._result(execution_id)))

    async def _result(self, execution_id: str) -> None:
        assert await reached(lambda: self.client.handle(execution_id).result("30s")) == _STEPS
        self.ledger.completed.add(execution_id)

    async def end(self, starting: asyncio.Task[None]) -> list[BaseException]:
        """Start nothing more; what the waits for results have raised, once all are over."""
        self._stopping.set()
        await starting
        answers = await asyncio.gather(*self._waiting, return_exceptions=True)
        return [answer for answer in answers if answer is not None]


async def reached(call: Callable[[], Awaitable[T]]) -> T:
    """What a call answers once the server can be reached: what a careful client does."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(BackendUnavailable):
                return await call()
            await asyncio.sleep(0.05)


class Scene:
    """Two workers and a client on a pair of servers, under load."""

    def __init__(self, pair: Replication) -> None:
        self.pair = pair
        self.ledger = Ledger()

    async def play(self, strike: Callable[[], Awaitable[None]]) -> list[BaseException]:
        """``strike`` while they are at work; then until everything has ended. What waits for results have raised."""
        await PostgresScheduler(self.pair.url).migrate()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                registry = TaskRegistry()
                registry.register(Chain(self.ledger))
                scheduler = await stack.enter_async_context(PostgresScheduler(self.pair.url))
                config = WorkerConfig(lease="20s", poll_interval="200ms", concurrency=20)
                await stack.enter_async_context(Worker(scheduler, registry, config))
            scheduler = await stack.enter_async_context(PostgresScheduler(self.pair.url))
            load = Load(DurableScheduler(scheduler), self.ledger)
            starting = asyncio.create_task(load.go_on())
            await self.acknowledged(60)
            await strike()
            await self.acknowledged(60)
            errors = await load.end(starting)
            # What a lost answer has left behind is not waited for by anybody.
            for execution_id in load.tried:
                with contextlib.suppress(ExecutionNotFound):
                    execution = await load.client.wait(execution_id, "30s")
                    assert (execution.status, execution.output) == ("completed", _STEPS), execution
                    steps = [step.name for step in (await load.client.history(execution_id)).steps]
                    assert sorted(steps) == [f"step-{number}" for number in range(_STEPS)], execution_id
            assert await scheduler.audit() == []
            return errors

    async def acknowledged(self, more: int) -> None:
        """Return when so many more results have been seen."""
        least = self.ledger.count + more

        async def enough() -> bool:
            return self.ledger.count >= least

        await until(enough, 40)


@pytest.mark.parametrize("version", VERSIONS)
async def test_with_synchronous_replication_a_failover_loses_nothing_that_was_acknowledged(version: int) -> None:  # B9
    await synchronous(version, random.Random(version))


async def synchronous(version: int, dice: random.Random) -> None:
    async with replication(version) as pair:
        await pair.synchronous(True)
        scene = Scene(pair)
        ledger = scene.ledger

        async def strike() -> None:
            await asyncio.sleep(dice.uniform(0, 0.3))
            await pair.kill()
            # Nobody has been told anything since. All of it is on the standby.
            recorded, completed = await stored(pair.standby.url)
            assert ledger.started <= recorded.keys()
            assert ledger.completed <= completed
            for execution_id, seen in ledger.seen.items():
                assert seen <= recorded[execution_id], execution_id
            await pair.promote()

        errors = await scene.play(strike)
        assert errors == []
        assert ledger.repeated == []
        assert max(ledger.bodies.values()) <= 2


async def test_with_asynchronous_replication_a_failover_loses_the_last_moments_and_leaves_everything_consistent() -> (
    None
):
    await asynchronous(NEWEST, random.Random(1))  # B9


async def asynchronous(version: int, dice: random.Random) -> None:
    async with replication(version) as pair:
        scene = Scene(pair)
        ledger = scene.ledger
        kept: dict[str, set[str]] = {}
        ended: set[str] = set()
        bodies: Counter[tuple[str, str]] = Counter()
        lost: set[tuple[str, str]] = set()

        async def strike() -> None:
            # The standby falls behind, and the primary goes on acknowledging.
            await asyncio.sleep(dice.uniform(0, 0.3))
            await pair.cut_off()
            await scene.acknowledged(60)
            await pair.kill()
            recorded, completed = await stored(pair.standby.url)
            async with PostgresScheduler(pair.standby.url) as standby:
                assert await standby.audit() == []
            kept.update(recorded)
            ended.update(completed)
            bodies.update(ledger.bodies)
            lost.update((name, step) for name, seen in ledger.seen.items() for step in seen - kept.get(name, set()))
            await pair.promote()

        errors = await scene.play(strike)
        # Of each execution the beginning is left, of some nothing at all, and of none a later step without an earlier one.
        for execution_id, names in kept.items():
            assert names == {f"step-{number}" for number in range(len(names))}, execution_id
        assert lost, "nothing was lost: the test proves nothing"
        # Whoever waits for a start that was lost is told so.
        assert all(isinstance(error, ExecutionNotFound) for error in errors), errors
        # What is left stays done. What was lost was done again, if its execution is left.
        for execution_id, names in kept.items():
            for step in names:
                assert ledger.bodies[execution_id, step] == bodies[execution_id, step], (execution_id, step)
        assert set(ledger.repeated) <= lost
        assert {(name, step) for name, step in lost if name in kept} <= set(ledger.repeated)


async def stored(url: str) -> tuple[dict[str, set[str]], set[str]]:
    """The recorded steps of each execution, and which have completed, as this server has them."""
    async with connected(url) as connection:
        await _replayed(connection)
        async with connection.transaction(isolation="repeatable_read"):
            steps = {row["execution_id"]: set(row["names"] or ()) for row in await connection.fetch(_RECORDED)}
            return steps, {row["execution_id"] for row in await connection.fetch(_COMPLETED)}


async def _replayed(standby: Any) -> None:
    """Return when the standby has applied all that it has received."""
    give_up = time.monotonic() + 20
    query = "SELECT coalesce(pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn(), true)"
    while not await standby.fetchval(query):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_failovers_at_other_moments_do_no_harm_either(seed: int) -> None:  # B9
    await synchronous(NEWEST, random.Random(seed))
    await asynchronous(NEWEST, random.Random(seed))
