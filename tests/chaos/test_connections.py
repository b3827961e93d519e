"""Storms over workers whose store is a server: its connections end, and the wire to it breaks. # B61"""

from __future__ import annotations

import asyncio

import pytest

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE
from tests.chaos.storm import Storm
from tests.chaos.test_kill import SECONDS, SEEDS
from tests.chaos.weather import DUTIES, Gusts, Lightning
from tests.postgres.wire import Wire

pytestmark = pytest.mark.skipif(STORE == "sqlite", reason="a file has no connections")


def test_connections_that_the_server_ends_cost_nothing_in_a_short_storm(place: Place) -> None:
    lightning(place, seed=61, seconds=10)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_connections_that_the_server_ends_cost_nothing_in_a_long_storm(place: Place, seed: int) -> None:
    lightning(place, seed=seed, seconds=SECONDS)


def test_a_wire_that_is_cut_slow_or_silent_costs_nothing_in_a_short_storm(place: Place) -> None:
    asyncio.run(gusts(place, seed=62, seconds=12))


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wire_that_is_cut_slow_or_silent_costs_nothing_in_a_long_storm(place: Place, seed: int) -> None:
    asyncio.run(gusts(place, seed=seed, seconds=SECONDS))


def lightning(place: Place, *, seed: int, seconds: float) -> None:
    bolts = Lightning(place.url)
    storm = Storm(place, seed=seed, seconds=seconds, weather=[bolts])
    proof = asyncio.run(storm.rage())
    assert proof.findings() == [], f"seed {seed}, the ledger is in {place.folder}"
    print(f"{dict(bolts.struck)} connections ended, {proof.deaths} deaths, {proof.reruns} bodies run again")
    assert set(bolts.struck) >= set(DUTIES)


async def gusts(place: Place, *, seed: int, seconds: float) -> None:
    direct = place.url
    async with Wire(direct, command_timeout="1s", connect_timeout="1s").open() as wire:
        (place.folder / "url").write_text(wire.url)
        place.url = wire.url
        wind = Gusts(wire)
        proof = await Storm(place, seed=seed, seconds=seconds, url=direct, weather=[wind]).rage()
    assert proof.findings() == [], f"seed {seed}, the ledger is in {place.folder}"
    print(f"{dict(wind.struck)} gusts, {proof.deaths} deaths, {proof.reruns} bodies run again")
    assert set(wind.struck) == {"cut", "slow", "silent"}
