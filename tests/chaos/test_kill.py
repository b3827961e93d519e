"""Workers that die at any moment, as processes of their own: B9 to B11, B25, B46, B54 to B57, B61 and B79 at once."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.behaviour.programs import Act, Place, audited, launch, registry
from tests.behaviour.world import STORE
from tests.chaos.proof import Proof, names, predicted
from tests.chaos.storm import Storm
from zart_core import DurableScheduler, Worker, WorkerConfig, connect

SECONDS = float(os.environ.get("ZART_SOAK_SECONDS", "180"))
"""How long each of the long storms lasts."""
SEEDS = [int(seed) for seed in os.environ.get("ZART_SOAK_SEEDS", "1 2 3").split()]


def test_nothing_durable_is_repeated_and_nothing_lost_in_a_short_storm(place: Place) -> None:  # B9, B56, B57
    # On a server, others follow that kill workers, too.
    weather(place, seed=56, seconds=10 if STORE == "sqlite" else 8)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_durable_is_repeated_and_nothing_lost_in_a_long_storm(place: Place, seed: int) -> None:  # B9, B56, B57
    weather(place, seed=seed, seconds=SECONDS)


def weather(place: Place, *, seed: int, seconds: float) -> None:
    """One storm, and the proof that it has done no harm."""
    storm = Storm(place, seed=seed, seconds=seconds)
    # Not an async test: a long storm outlasts the time that those have.
    proof = asyncio.run(storm.rage())
    assert proof.findings() == [], f"seed {seed}, the ledger is in {place.folder}"
    print(f"{proof.deaths} deaths, {proof.freezes} freezes, {storm.drained} drained, {proof.reruns} bodies run again")
    # A storm in which nothing happened proves nothing.
    assert proof.deaths > seconds / 4
    assert proof.freezes > 0
    assert proof.reruns > seconds / 4


# --- a death in each call ---------------------------------------------------------------------------------------------

LIFE = [
    Act("step", length=5, failures=1),
    Act("event"),
    Act("sleep", length=1_200),
    Act("pair", length=5),
    Act("fan", length=5, failures=1),
    Act("step", length=5),
]
DEPTH = {"register": 1, "claim": 3, "flush": 8, "signals": 1, "heartbeat": 1, "reap": 2, "deregister": 1}
CASES = [
    f"{method}-{moment}-{number}"
    for method, depth in DEPTH.items()
    for moment in ("before", "after")
    for number in range(1, depth + 1)
]
SURE = {f"{method}-{moment}-1" for method in ("register", "claim", "flush", "reap") for moment in ("before", "after")}
"""Calls that every worker makes before its execution has ended."""


async def test_wherever_a_worker_dies_nothing_durable_is_repeated_and_nothing_is_lost(
    place: Place,
) -> None:  # B9, B10, B46
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        for case in CASES:
            handle = await client.start("mixed", LIFE, execution_id=case, queue=case)
            await handle.offer_event("tick", 1)
        doomed = await launch(place, "doomed", " ".join(CASES))
        try:
            codes = {line.split()[0]: int(line.split()[1]) for line in (await doomed.rest()).splitlines()}
        finally:
            await doomed.kill()
        died = {case for case, code in codes.items() if code == -9}
        assert set(codes.values()) <= {-9, 0}, doomed.said
        assert died >= SURE
        assert len(died) > len(CASES) * 0.6

        durable = [
            f"begin {case} {step.name} "
            for case in CASES
            for step in (await client.history(case)).steps
            if step.status == "completed"
        ]
        before = len(place.ledger.entries())
        config = WorkerConfig(queues=tuple(CASES), lease="30s", linger="50ms", poll_interval="100ms")
        async with Worker(scheduler, registry(place), config):
            for case in CASES:
                execution = await client.wait(case, "30s")
                assert (execution.status, execution.output) == ("completed", predicted(LIFE)), case
        again = [line for line in place.ledger.entries()[before:] if line.startswith(tuple(durable))]
        assert again == [], "a step ran again though its result was in the store"
        # With so many processes at once, one that stood still for its whole lease has lost it, and runs a body again.
        lost = [line.split()[0] for line in doomed.said.splitlines() if "has lost its lease" in line]
        assert Proof(place.ledger.entries(), dict.fromkeys(CASES, LIFE), lost).findings() == []
        for case in CASES:
            attempts = {step.name: step.attempts for step in (await client.history(case)).steps if step.kind == "step"}
            expected = {step: act.failures + 1 for number, act in enumerate(LIFE) for step in names(number, act)}
            assert attempts == expected, f"{case}: a death used up an attempt"
        assert await audited(scheduler) == []
