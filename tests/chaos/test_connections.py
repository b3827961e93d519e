"""Storms over workers whose store is a server: its connections end, and the wire to it breaks. # B61"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE
from tests.chaos.storm import Storm
from tests.chaos.test_kill import SECONDS, SEEDS
from tests.chaos.weather import DUTIES, Crashes, Gusts, Lightning
from tests.postgres.server import server_of_ones_own
from tests.postgres.wire import Wire
from zart_postgres import PostgresScheduler

pytestmark = pytest.mark.skipif(STORE == "sqlite", reason="a file has no connections")


def test_connections_that_the_server_ends_cost_nothing_in_a_short_storm(place: Place) -> None:
    lightning(place, seed=61, seconds=6)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_connections_that_the_server_ends_cost_nothing_in_a_long_storm(place: Place, seed: int) -> None:
    lightning(place, seed=seed, seconds=SECONDS)


def test_a_wire_that_is_cut_slow_or_silent_costs_nothing_in_a_short_storm(place: Place) -> None:
    asyncio.run(gusts(place, seed=62, seconds=7))


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wire_that_is_cut_slow_or_silent_costs_nothing_in_a_long_storm(place: Place, seed: int) -> None:
    asyncio.run(gusts(place, seed=seed, seconds=SECONDS))


def test_a_server_that_crashes_again_and_again_costs_nothing_in_a_short_storm(tmp_path: Path) -> None:
    crashes(tmp_path, seed=63, seconds=6)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_that_crashes_again_and_again_costs_nothing_in_a_long_storm(tmp_path: Path, seed: int) -> None:
    crashes(tmp_path, seed=seed, seconds=SECONDS)


def crashes(folder: Path, *, seed: int, seconds: float) -> None:
    with server_of_ones_own() as (url, crash):
        (folder / "url").write_text(url)
        asyncio.run(PostgresScheduler(url).migrate())
        falls = Crashes(crash)
        proof = asyncio.run(Storm(Place(folder), seed=seed, seconds=seconds, weather=[falls]).rage())
    assert proof.findings() == [], f"seed {seed}, the ledger is in {folder}"
    print(f"{falls.count} crashes of the server, {proof.deaths} deaths, {proof.reruns} bodies run again")
    assert falls.count > seconds / 8


def lightning(place: Place, *, seed: int, seconds: float) -> None:
    bolts = Lightning(place.url)
    storm = Storm(place, seed=seed, seconds=seconds, weather=[bolts])
    proof = asyncio.run(storm.rage())
    assert proof.findings() == [], f"seed {seed}, the ledger is in {place.folder}"
    print(f"{dict(bolts.struck)} connections ended, {proof.deaths} deaths, {proof.reruns} bodies run again")
    assert set(bolts.struck) >= set(DUTIES)


async def gusts(place: Place, *, seed: int, seconds: float) -> None:
    async with Wire(place.url, command_timeout="1s", connect_timeout="1s").open() as wire:
        (place.folder / "url").write_text(wire.url)
        place.url = wire.url
        wind = Gusts(wire)
        # The client that starts, offers and waits is behind the same wire.
        proof = await Storm(place, seed=seed, seconds=seconds, weather=[wind]).rage()
    assert proof.findings() == [], f"seed {seed}, the ledger is in {place.folder}"
    print(f"{dict(wind.struck)} gusts, {proof.deaths} deaths, {proof.reruns} bodies run again")
    assert set(wind.struck) == {"cut", "slow", "silent"}
