"""Workers that are killed with fan-outs in flight: B35, B36, B38, B40."""

from __future__ import annotations

import random
from collections import Counter

from tests.behaviour.programs import Place, launch_worker, until
from zart_core import DurableScheduler, connect

KILLS = 4
STEPS, NEAR = 80, 5
NAMES = [f"spread-{n}" for n in range(4)]
LINES = len(NAMES) * (3 * STEPS + NEAR)


async def test_parallel_steps_in_flight_are_neither_lost_nor_doubled(place: Place) -> None:  # B36, B38, B40
    dice = random.Random(40)
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        for name in NAMES:
            await client.start("spread", STEPS, execution_id=name)
        for _ in range(KILLS):
            # Two at once, of which one dies: the other goes on with what it left behind.
            workers = [await launch_worker(place, lease="500ms", concurrency=8) for _ in range(2)]
            enough = min(
                len(place.ledger.entries()) + dice.randint(20, 60), LINES
            )  # all is done where workers are quick
            try:
                await until(lambda enough=enough: len(place.ledger.entries()) >= enough)
            finally:
                for worker in workers:
                    await worker.kill()
        worker = await launch_worker(place, lease="5s", concurrency=8)
        try:
            for name in NAMES:
                assert (await client.wait(name, "60s")).output == 2 * STEPS + NEAR
        finally:
            await worker.kill()

        lines = [line.rsplit(" ", 1)[0] for line in place.ledger.entries()]
        counts = Counter(lines)
        assert counts.keys() == {
            *(f"step {name} {n}" for name in NAMES for n in range(STEPS + NEAR)),
            *(f"{word} {name} {n}" for word in ("enter", "leave") for name in NAMES for n in range(STEPS)),
        }
        # A kill catches at most one body of each run that is in flight (a run may have five of its own besides), and none whose
        # result is durable.
        most = KILLS * 2 * 8 * 2 + KILLS * len(NAMES) * NEAR
        assert sum(counts.values()) - len(counts) <= most
        for name in NAMES:
            history = await client.history(name)
            assert {step.status for step in history.steps} == {"completed"}
            assert len(history.steps) == 2 * STEPS + NEAR
        audit = getattr(scheduler, "audit")  # noqa: B009 - not part of the contract
        assert await audit() == []
