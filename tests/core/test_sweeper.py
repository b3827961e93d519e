"""When a worker looks for the dead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zart_core.clock import ProcessClock
from zart_core.engine.sweeper import Sweeper
from zart_core.records import Reaped


class Leases:
    """A scheduler of nothing but reaps, which answers by ``expiries``, the last again and again."""

    def __init__(self, *expiries: int | None) -> None:
        self.clock = ProcessClock()
        self._expiries = list(expiries)
        self.reaps = 0

    async def reap(self, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        self.reaps += 1
        left = self._expiries.pop(0) if len(self._expiries) > 1 else self._expiries[0]
        return Reaped(0, None if left is None else self.clock.now() + left)


async def sweeps(leases: Any, interval: float, seconds: float) -> int:
    """How often a sweeper looks within these seconds."""
    sweeper = Sweeper(leases, 1, interval=interval, max_deliveries=3, freed=lambda: None)
    task = asyncio.create_task(sweeper.run())
    await asyncio.wait((task,), timeout=seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return int(leases.reaps)


async def test_it_looks_again_when_the_next_lease_ends() -> None:  # B56
    leases = Leases(200_000, None)
    sweeper = Sweeper(leases, 1, interval=60.0, max_deliveries=3, freed=lambda: None)  # type: ignore[arg-type]
    task = asyncio.create_task(sweeper.run())
    async with asyncio.timeout(20):
        while leases.reaps < 2:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("expiry", [None, 3_600_000_000])
async def test_it_looks_at_its_interval_whatever_the_leases_say(expiry: int | None) -> None:
    assert await sweeps(Leases(expiry), interval=0.02, seconds=0.5) > 3


async def test_leases_that_have_passed_and_stay_do_not_make_it_look_without_a_pause() -> None:
    assert await sweeps(Leases(-1_000_000), interval=60.0, seconds=0.5) <= 5
