"""Storms over worker processes whose primary dies, and whose synchronous standby takes its place. # B61"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE
from tests.chaos.proof import Proof
from tests.chaos.storm import Storm
from tests.chaos.test_kill import SECONDS, SEEDS
from tests.chaos.weather import Failovers
from tests.postgres.replication import replication
from zart_postgres import PostgresScheduler

pytestmark = pytest.mark.skipif(STORE == "sqlite", reason="a file has no standby")


def test_failovers_to_a_synchronous_standby_cost_nothing_in_a_short_storm(tmp_path: Path) -> None:  # B9, B56
    failovers(tmp_path, seed=64, seconds=7)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_failovers_to_a_synchronous_standby_cost_nothing_in_a_long_storm(tmp_path: Path, seed: int) -> None:  # B9, B56
    failovers(tmp_path, seed=seed, seconds=SECONDS)


def failovers(folder: Path, *, seed: int, seconds: float) -> None:
    proof, count = asyncio.run(_storm(folder, seed, seconds))
    assert proof.findings() == [], f"seed {seed}, the ledger is in {folder}"
    print(f"{count} failovers, {proof.deaths} deaths, {proof.reruns} bodies run again")
    assert count > 0


async def _storm(folder: Path, seed: int, seconds: float) -> tuple[Proof, int]:
    async with replication() as pair:
        await pair.synchronous(True)
        (folder / "url").write_text(pair.url)
        await PostgresScheduler(pair.url).migrate()
        weather = Failovers(pair)
        proof = await Storm(Place(folder), seed=seed, seconds=seconds, weather=[weather]).rage()
    return proof, weather.count
