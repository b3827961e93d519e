"""Workers that are killed with children and undos in flight: B35, B36, B41, and sagas."""

from __future__ import annotations

import random
from collections import Counter

from tests.behaviour.programs import Place, audited, launch_worker, until
from zart_core import DurableScheduler, connect

KILLS = 4
CHILDREN, STEPS = 40, 60
FAMILIES = [f"brood-{n}" for n in range(3)]
RETREATS = [f"retreat-{n}" for n in range(3)]


async def test_children_and_undos_in_flight_are_neither_lost_nor_doubled(place: Place) -> None:  # B36, B41
    dice = random.Random(41)
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        for name in FAMILIES:
            await client.start("brood", CHILDREN, execution_id=name)
        for name in RETREATS:
            await client.start("retreat", STEPS, execution_id=name)
        for _ in range(KILLS):
            worker = await launch_worker(place, lease="500ms", concurrency=8)
            enough = len(place.ledger.entries()) + dice.randint(20, 80)
            try:
                await until(lambda enough=enough: len(place.ledger.entries()) >= enough)
            finally:
                await worker.kill()
        worker = await launch_worker(place, lease="5s", concurrency=8)
        try:
            for name in FAMILIES:
                assert (await client.wait(name, "60s")).output == CHILDREN  # each child counts 0 and 1
            for name in RETREATS:
                execution = await client.wait(name, "60s")
                assert execution.error is not None
                assert (execution.status, execution.error.message) == ("failed", "no further")
        finally:
            await worker.kill()

        lines = [line.rsplit(" ", 1)[0] for line in place.ledger.entries()]
        counts = Counter(lines)
        for name in FAMILIES:
            steps = [step for step in (await client.history(name)).steps if step.kind == "child"]
            assert sorted(step.child_id or "" for step in steps) == sorted(f"{name}-{n}" for n in range(CHILDREN))
            page = await client.list(search=f"{name}-", limit=1_000)
            assert len(page.items) == CHILDREN, "a child was started twice"
        for name in RETREATS:
            undone = [line.split()[2] for line in dict.fromkeys(lines) if line.startswith(f"undo {name} ")]
            assert undone == [str(number) for number in reversed(range(STEPS))]
        expected = {f"step {name}-{n} {step}" for name in FAMILIES for n in range(CHILDREN) for step in range(2)}
        expected |= {f"{word} {name} {n}" for word in ("step", "undo") for name in RETREATS for n in range(STEPS)}
        assert counts.keys() == expected
        # A kill catches at most one body of each execution that is in flight, and never one whose result is durable.
        assert sum(counts.values()) - len(expected) <= KILLS * 8
        assert await audited(scheduler) == []
