"""A worker that dies in every window of every primitive; and that a sweep finds what is not right."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from tests.crashes.scenarios import SCENARIOS, Scene
from tests.soak.seed import BASE
from zart_core import TaskContext
from zart_core.records import Claimed, Flush, Flushed, Reaped
from zart_core.testing import Outcome, crash_sweep
from zart_sqlite import SqliteScheduler, finishes


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_death_in_any_window_goes_unnoticed(name: str) -> None:  # B9 B10 B46 B56
    report = await crash_sweep(**SCENARIOS[name], pairs=4)
    assert report.deaths >= len(report.windows) * 3 // 4


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(BASE, BASE + 4))
@pytest.mark.parametrize("name", SCENARIOS)
async def test_many_pairs_of_deaths_go_unnoticed(name: str, seed: int) -> None:  # B9 B10 B46 B56
    await crash_sweep(**SCENARIOS[name], pairs=60, seed=seed)


# --- the windows ------------------------------------------------------------------------------------------------------


class Payment(Scene):
    """Charges; the service knows no idempotency keys."""

    name = "payment"

    def __init__(self) -> None:
        super().__init__()
        self.charged = 0

    async def run(self, ctx: TaskContext, data: int | None) -> str:
        return await ctx.step("charge", self.charge)

    async def charge(self) -> str:
        self.charged += 1
        return "receipt"


async def test_the_windows_are_before_and_after_all_that_the_world_sees() -> None:
    report = await crash_sweep(Payment, pairs=0)
    ours = [window for window in report.windows if "charge" in window]
    assert ours == ["step charge/before", "step charge/after", "flush step charge/before", "flush step charge/after"]
    assert {"start/before", "start/after", "claim/before", "claim/after", "flush finish completed/before"} <= set(
        report.windows
    )


async def test_a_worker_dies_once_in_each_window() -> None:
    report = await crash_sweep(Payment, pairs=0)
    assert report.runs == len(report.windows) + 1
    # How often an idle worker asks for work is a matter of real time: the last of these may not come again.
    assert len(report.windows) - 4 <= report.deaths <= len(report.windows)


async def test_a_sweep_can_be_told_the_only_windows_to_try() -> None:
    deaths: list[tuple[str, ...]] = []
    pair = ("step charge/after", "flush step charge/before")
    await crash_sweep(Payment, windows=["claim/after", pair], invariant=lambda outcome: deaths.append(outcome.deaths))
    assert deaths == [(), ("claim/after",), pair]


async def test_the_same_seed_draws_the_same_pairs() -> None:
    async def drawn(seed: int) -> list[tuple[str, ...]]:
        deaths: list[tuple[str, ...]] = []
        await crash_sweep(Payment, pairs=6, seed=seed, invariant=lambda outcome: deaths.append(outcome.deaths[:1]))
        return deaths[-6:]  # where they begin: what comes so many windows later is a matter of real time

    assert await drawn(1) == await drawn(1) != await drawn(2)


# --- what a sweep finds in handlers -----------------------------------------------------------------------------------


async def test_an_effect_that_a_death_can_repeat_is_found_with_its_window() -> None:
    def once(outcome: Outcome) -> None:
        assert isinstance(outcome.handler, Payment)
        assert outcome.handler.charged == 1, "charged twice"

    with pytest.raises(
        AssertionError, match="'step charge/after': the invariant does not hold.*charged twice"
    ) as raised:
        await crash_sweep(Payment, invariant=once, pairs=0)
    # Only where the effect is there and its record is not.
    assert str(raised.value).count("charged twice") == 2
    assert "flush step charge/before" in str(raised.value)


class Careless(Scene):
    """Does things outside of its steps."""

    name = "careless"

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def run(self, ctx: TaskContext, data: None) -> int:
        self.count += 1
        await ctx.step("a", self.note, "a")
        return self.count


async def test_an_output_that_depends_on_the_deaths_is_found() -> None:
    with pytest.raises(AssertionError, match="its output is 2, without a death it is 1"):
        await crash_sweep(Careless, pairs=0)
    await crash_sweep(Careless, pairs=0, same_output=False)


class Patient(Scene):
    """Waits for a word."""

    name = "patient"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("word", str)


async def test_a_scenario_that_never_ends_is_refused_with_what_it_waits_for() -> None:
    with pytest.raises(AssertionError, match="does not end even without a death.*waiting.*word"):
        await crash_sweep(Patient)


class Restless(Scene):
    """Sleeps for ever, each time under another name."""

    name = "restless"

    async def run(self, ctx: TaskContext, data: None) -> None:
        for number in itertools.count():
            await ctx.sleep(f"nap-{number}", "1h")


async def test_a_scenario_that_goes_round_in_circles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zart_core.testing.sweep._MOST", 50)
    with pytest.raises(AssertionError, match="it goes round in circles"):
        await crash_sweep(Restless)


async def test_drive_does_what_an_execution_waits_for() -> None:
    async def drive(client: Any, execution: Any) -> bool:
        await client.offer_event(execution.execution_id, "word", "hello", event_id="the one")
        return True

    report = await crash_sweep(
        Patient, drive=drive, pairs=0, invariant=lambda outcome: outcome.execution.output == "hello"
    )
    assert report.deaths >= len(report.windows) - 4


async def test_mocks_run_in_place_of_steps() -> None:
    class Remote(Scene):
        name = "remote"

        async def run(self, ctx: TaskContext, data: int) -> list[Any]:
            said = [await ctx.step(f"ask-{data}", self.note, "a"), await ctx.step("double", self.note, "4")]
            return [*said, await ctx.step_or("down", self.note, "b", default="was down")]

    mocks = {"ask-*": "mocked", "double": lambda word: word * 2, "down": ConnectionError}
    found: list[Any] = []
    await crash_sweep(Remote, 3, mocks=mocks, invariant=lambda outcome: found.append(outcome.execution.output), pairs=0)
    assert found
    assert all(output == ["mocked", "44", "was down"] for output in found)


async def test_an_invariant_that_answers_false_or_fails_later_is_heeded() -> None:
    async def later(outcome: Outcome) -> None:
        await asyncio.sleep(0)
        raise ValueError("too late")

    with pytest.raises(AssertionError, match="the invariant does not hold$"):
        await crash_sweep(Payment, windows=(), invariant=lambda outcome: False)
    with pytest.raises(AssertionError, match="ValueError: too late"):
        await crash_sweep(Payment, windows=(), invariant=later)


async def test_effects_are_counted_by_step_and_by_key() -> None:
    seen: dict[tuple[str, ...], tuple[int, int]] = {}

    def count(outcome: Outcome) -> None:
        seen[outcome.deaths] = outcome.effects.times("charge"), outcome.effects.most("charge")

    await crash_sweep(Payment, windows=["step charge/after", "flush step charge/after"], invariant=count)
    assert seen == {(): (1, 1), ("step charge/after",): (2, 2), ("flush step charge/after",): (1, 1)}


class Blocks(Scene):
    """Its ``finally`` wants to write when the process is dead already."""

    name = "blocks"

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            return await ctx.step("a", self.note, "a")
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                await ctx.publish("left", True)


async def test_a_dead_process_writes_nothing_in_its_finally_blocks() -> None:
    async def unpublished(outcome: Outcome) -> None:
        published = await outcome.client.published(outcome.execution.execution_id)
        assert published == {"left": True}
        history = await outcome.client.history(outcome.execution.execution_id)
        assert [step.name for step in history.steps] == ["a"]

    await crash_sweep(Blocks, invariant=unpublished, pairs=0)


# --- what a sweep finds in an engine or a store -----------------------------------------------------------------------


async def test_a_store_that_does_not_free_what_the_dead_held_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reap(self: SqliteScheduler, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        return Reaped(0)

    monkeypatch.setattr(SqliteScheduler, "reap", reap)
    monkeypatch.setattr("zart_core.testing.sweep._PATIENCE", 5)
    with pytest.raises(AssertionError, match="'claim/after': it hangs: its status is running"):
        await crash_sweep(Payment, windows=["claim/after"])


async def test_a_store_that_forgets_a_step_at_a_claim_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = SqliteScheduler.claim

    async def claim(self: SqliteScheduler, claim: Any) -> Claimed:
        claimed = await true(self, claim)
        for run in claimed.runs:
            run.steps.clear()
        return claimed

    monkeypatch.setattr(SqliteScheduler, "claim", claim)
    with pytest.raises(
        AssertionError, match="'flush step charge/after': step 'charge' .* ran again after its result was"
    ):
        await crash_sweep(Payment, pairs=0)


async def test_a_store_that_answers_before_it_has_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of each step is kept back until the next flush, as by a group commit that answers too soon."""
    true = SqliteScheduler.flush
    kept: dict[SqliteScheduler, Flush] = {}

    async def flush(self: SqliteScheduler, flush: Flush) -> Flushed:
        if earlier := kept.pop(self, None):
            await true(self, earlier)
        if len(flush.facts()) == len(flush.steps) == 1:
            kept[self] = flush
            return Flushed()
        return await true(self, flush)

    monkeypatch.setattr(SqliteScheduler, "flush", flush)
    with pytest.raises(
        AssertionError, match="'flush step charge/after': step 'charge' .* ran again after its result was"
    ):
        await crash_sweep(Payment, pairs=0)


async def test_a_store_that_forgets_to_wake_a_parent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unnoticed while the parent is in memory and is told; not when it comes back from a death and finds its child at work."""
    wake = "THEN min(:now, coalesce(wake_at, :now)) ELSE wake_at END"
    assert wake in finishes._COUNT_DOWN
    monkeypatch.setattr(finishes, "_COUNT_DOWN", finishes._COUNT_DOWN.replace(wake, "THEN wake_at ELSE wake_at END"))
    monkeypatch.setattr("zart_core.testing.sweep._PATIENCE", 5)
    with pytest.raises(AssertionError, match="it hangs: its status is waiting"):
        await crash_sweep(**SCENARIOS["family"], pairs=0)


async def test_an_engine_that_records_a_step_before_its_effect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from zart_core.engine.steps import Attempts

    async def finish(self: Attempts) -> Any:
        row, value = await self._completed("a", self.first_started)
        await self._attempt(0, None)
        return row, value

    class Once(Payment):
        name = "once"

        async def run(self, ctx: TaskContext, data: None) -> str:
            return await ctx.step("charge", self.charge)

    def charged(outcome: Outcome) -> None:
        assert isinstance(outcome.handler, Once)
        assert outcome.handler.charged >= 1, "never charged"

    monkeypatch.setattr(Attempts, "finish", finish)
    with pytest.raises(AssertionError, match="'flush step charge/after': the invariant does not hold.*never charged"):
        await crash_sweep(Once, invariant=charged, pairs=0)
