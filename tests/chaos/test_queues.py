"""Limits of queues while workers are killed: never more at work than allowed, by a ledger that all processes write."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.behaviour.programs import Place, Process, audited, launch_worker, registry, until
from zart_core import DurableScheduler, Queue, StartRequest, Worker, WorkerConfig, connect

SECONDS = float(os.environ.get("ZART_SOAK_SECONDS", "180"))
LIMITS = Queue("metered", concurrency=6, per_key=2)
KEYS = 8
CREW = 3
BATCH = 100


def test_limits_hold_while_holders_are_killed(place: Place) -> None:
    asyncio.run(hold(place, seed=7, kills=5))


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_limits_hold_while_holders_are_killed_for_long(place: Place, seed: int) -> None:
    asyncio.run(hold(place, seed=seed, kills=round(SECONDS / 3)))


async def hold(place: Place, *, seed: int, kills: int) -> None:
    """Workers die in the middle of their work, again and again; then one finishes it all."""
    dice = random.Random(seed)
    options = {"queues": ["metered"], "lease": "2s", "concurrency": 20, "max_deliveries": 10_000}
    crew: list[Process] = []
    said: list[Process] = []
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        # The workers below know the queue by its name only.
        async with Worker(scheduler, registry(place), WorkerConfig(queues=(LIMITS,))):
            pass
        count = 0
        try:
            for _ in range(kills):
                while len(crew) < CREW:
                    crew.append(await launch_worker(place, **options))
                    said.append(crew[-1])
                # However quick the last ones were, there is work when the next one dies.
                requests = [request(n) for n in range(count, count + BATCH)]
                count += BATCH
                await client.start_many(requests)
                victim = crew.pop(dice.randrange(len(crew)))
                # In the middle of its work, wherever that is.
                enough = len(place.ledger.entries()) + dice.randint(5, 60)
                await until(lambda enough=enough: len(place.ledger.entries()) >= enough)
                place.ledger.write(f"kill {victim.pid}")
                await victim.kill()
            crew.append(await launch_worker(place, **options))
            said.append(crew[-1])
            for n in range(count):
                execution = await client.wait(f"e{n}", "120s")
                assert execution.status == "completed", execution
        finally:
            for process in crew:
                await process.kill()
        assert await audited(scheduler) == []
    entries = place.ledger.entries()
    # One that stood still for its whole lease, on a machine with much to do, has lost its places while its bodies ran on.
    lost = {str(process.pid) for process in said if "has lost its lease" in process.said}
    total, of_one = most_at_once(entries, lost)
    assert total <= 6, f"{total} were at work at once; the ledger is in {place.folder}"
    assert of_one <= 2, f"{of_one} of one key were at work at once; the ledger is in {place.folder}"
    assert total > 3, "so few were at work that nothing is proved"
    done = {entry.split()[2] for entry in entries if entry.startswith("leave")}
    assert done == {f"e{n}" for n in range(count)}


def request(n: int) -> StartRequest:
    return StartRequest("metered", f"k{n % KEYS}", f"e{n}", queue="metered", key=f"k{n % KEYS}")


def most_at_once(entries: Iterable[str], lost: Iterable[str]) -> tuple[int, int]:
    """How many were at work at once, of all keys and of one. What a process does that is about to be killed does not count, nor what those
    do that have lost their leases."""
    at_work: dict[tuple[str, str], str] = {}
    dead = set(lost)
    total = of_one = 0
    for entry in entries:
        what, *rest = entry.split()
        if what == "kill":
            dead.add(rest[0])
            at_work = {work: key for work, key in at_work.items() if work[1] != rest[0]}
            continue
        key, execution_id, pid = rest
        if pid in dead:
            continue
        if what == "enter":
            at_work[execution_id, pid] = key
        else:
            del at_work[execution_id, pid]
        counts = Counter(at_work.values())
        total, of_one = max(total, counts.total()), max(of_one, *counts.values(), 0)
    return total, of_one
