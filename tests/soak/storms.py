"""Rounds of storms: worker processes that are killed, and something more that happens to their store meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE, store
from tests.chaos.storm import Storm, Weather
from tests.chaos.test_operations import Siege
from tests.chaos.test_queues import hold
from tests.soak.records import UNEXPLAINED, WRONG, Finding, Round
from tests.soak.rounds import Beating, replay_of

_RATE = 5.0
"""Executions started in a second: what is done beside two other lanes."""
_LONGEST = 180.0
"""Seconds after a storm within which they end, on a machine that is busy with something else, too."""
_EACH = 2.0
"""Seconds for each kill of a holder of places in a queue."""


def kills(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """Nothing more."""
    with store(folder):
        return asyncio.run(_storm("storm-kills", Place(folder), seed, seconds))


def connections(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """The server ends connections."""
    from tests.chaos.weather import Lightning

    with store(folder):
        place = Place(folder)
        bolts = Lightning(place.url)
        round_ = asyncio.run(_storm("storm-connections", place, seed, seconds, [bolts]))
        round_.done["connections ended"] = bolts.struck.total()
        return round_


def wire(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """The wire is cut, slow, or silent."""
    from tests.chaos.weather import Gusts
    from tests.postgres.wire import Wire

    async def rage() -> Round:
        async with Wire(Place(folder).url, command_timeout="1s", connect_timeout="1s").open() as line:
            (folder / "url").write_text(line.url)
            wind = Gusts(line)
            round_ = await _storm("storm-wire", Place(folder), seed, seconds, [wind])
        round_.done["gusts on the wire"] = wind.struck.total()
        return round_

    with store(folder):
        return asyncio.run(rage())


def crashes(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """The server crashes, and comes up again."""
    from tests.chaos.weather import Crashes
    from tests.postgres.server import server_of_ones_own
    from zart_postgres import PostgresScheduler

    with server_of_ones_own() as (url, crash):
        (folder / "url").write_text(url)
        asyncio.run(PostgresScheduler(url).migrate())
        falls = Crashes(crash)
        round_ = asyncio.run(_storm("storm-crashes", Place(folder), seed, seconds, [falls]))
        round_.done["server crashes"] = falls.count
        return round_


def failovers(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """The primary dies, and its synchronous standby takes its place."""
    from tests.chaos.weather import Failovers
    from tests.postgres.replication import replication
    from zart_postgres import PostgresScheduler

    async def rage() -> Round:
        async with replication() as pair:
            await pair.synchronous(True)
            (folder / "url").write_text(pair.url)
            await PostgresScheduler(pair.url).migrate()
            weather = Failovers(pair)
            round_ = await _storm("storm-failovers", Place(folder), seed, seconds, [weather])
        round_.done["failovers"] = weather.count
        return round_

    return asyncio.run(rage())


def operations(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """Pauses, restarts, reruns, retries, cancellations, forks and purges."""
    began = time.monotonic()
    with store(folder):
        siege = Siege(Place(folder), seed=seed, seconds=seconds)
        texts = asyncio.run(siege.rage())
    done = dict(siege.done)
    ids = {line.split()[1] for line in siege.place.lines("begin")}
    return Round(
        name="storm-operations",
        seed=seed,
        took=time.monotonic() - began,
        replay=replay_of("storm-operations", STORE, seed, seconds),
        done={
            "executions": len(ids),
            "kills": done.pop("killed", 0),
            "operations": sum(done.values()),
        },
        findings=[Finding(UNEXPLAINED if "was neither killed" in text else WRONG, text) for text in texts],
    )


def queues(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """Queues with limits, whose holders die in the middle of their work."""
    began = time.monotonic()
    count = max(2, round(seconds / _EACH))
    with store(folder):
        place = Place(folder)
        asyncio.run(hold(place, seed=seed, kills=count))
    done = {line.split()[2] for line in place.lines("leave")}
    return Round(
        name="storm-queues",
        seed=seed,
        took=time.monotonic() - began,
        replay=replay_of("storm-queues", STORE, seed, seconds),
        done={"executions": len(done), "kills": count},
    )


async def _storm(name: str, place: Place, seed: int, seconds: float, weather: Sequence[Weather] = ()) -> Round:
    began = time.monotonic()
    storm = Storm(place, seed=seed, seconds=seconds, weather=weather, rate=_RATE, longest=_LONGEST)
    proof = await storm.rage()
    findings = [Finding(kind, text) for kind, texts in proof.by_kind().items() for text in texts]
    explained = proof.reruns - sum(finding.kind == UNEXPLAINED for finding in findings)
    return Round(
        name=name,
        seed=seed,
        took=time.monotonic() - began,
        replay=replay_of(name, STORE, seed, seconds),
        done={
            "programs": len(storm.programs),
            "executions": len(storm.programs),
            "steps": proof.steps,
            "workers started": storm.launched,
            "kills": proof.deaths,
            "freezes": proof.freezes,
            "drains": storm.drained,
        },
        repeats={"killed, frozen, or lease lost": max(0, explained)},
        findings=findings,
    )
