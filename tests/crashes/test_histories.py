"""Histories exported from one place, replayed against the code of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.crashes.scenarios import Again, Child, Lap, Laps, Parent, Scene, Spread, Steps, Trip, Waits
from zart_core import ExecutionNotFound, Payloads, TaskContext, TaskHandler, TaskRegistry
from zart_core.testing import TestEngine, replay_check


async def exported(
    handler: Any, data: Any = None, *, events: list[Any] | None = None, until: str = "10d", **options: Any
) -> bytes:
    """The history of an execution of ``handler`` after so much time."""
    handlers = [handler] if isinstance(handler, TaskHandler) else handler
    registry = TaskRegistry()
    for each in handlers:
        registry.register(each)
    async with TestEngine(registry, **options) as engine:
        handle = await engine.start(handlers[0].name, data)
        for payload in events or ():
            await handle.offer_event("word", payload)
        await engine.advance(until)
        return await engine.client.export_history(handle.execution_id)


def with_child(handler: Scene) -> list[Any]:
    return [handler, Child(handler.ledger)]


FINISHED: dict[str, tuple[Any, Any, list[Any]]] = {
    "steps": (Steps, None, []),
    "waits": (Waits, None, ["x", "y"]),
    "spread": (Spread, None, []),
    "parent": (Parent, None, []),
    "trip": (Trip, None, []),
    "again": (Again, None, []),
    "laps": (Laps, Lap(2, ["a", "b"]), ["c"]),
}


@pytest.mark.parametrize("name", FINISHED)
async def test_a_finished_history_replays_to_its_end_and_runs_no_step(name: str) -> None:
    make, data, events = FINISHED[name]
    history = await exported(with_child(make()) if make is Parent else make(), data, events=events)
    handler = make()
    [replayed] = await replay_check(handler, history)
    assert (replayed.came_to, replayed.new, replayed.unmet) == ("end", (), ())
    assert not handler.ledger.entries


async def test_a_run_that_continued_as_new_replays_to_its_end() -> None:
    history = await exported(Laps(), Lap(0), events=["a"])
    [latest] = await replay_check(Laps, history)
    assert latest.came_to == "wait"
    assert latest.run == 2


async def test_a_history_under_way_replays_to_where_it_waits() -> None:
    for events in ([], ["x"], ["x", "y"]):
        [replayed] = await replay_check(Waits, await exported(Waits(), events=events, until="90m"))
        assert (replayed.came_to, replayed.new, replayed.unmet) == ("wait", (), ())
    [asleep] = await replay_check(Waits, await exported(Waits(), until="1m"))
    assert asleep.came_to == "wait"


async def test_a_run_before_the_latest_can_be_exported() -> None:
    registry = TaskRegistry()
    registry.register(Laps())
    async with TestEngine(registry) as engine:
        handle = await engine.start("laps", Lap(0))
        await handle.offer_event("word", "a")
        await engine.settle()
        first = await engine.client.export_history(handle.execution_id, run=1)
        with pytest.raises(ExecutionNotFound, match="run 7"):
            await engine.client.export_history(handle.execution_id, run=7)
    [replayed] = await replay_check(Laps, first)
    assert (replayed.came_to, replayed.run) == ("end", 1)


# --- code that does not fit -------------------------------------------------------------------------------------------


class Order(Scene):
    """The code of yesterday."""

    name = "order"

    async def run(self, ctx: TaskContext, data: int) -> str:
        price = await ctx.step("price", self.price, data)
        await ctx.sleep("grace", "1h")
        receipt = await ctx.step("charge", self.charge, price)
        return receipt

    async def price(self, data: int) -> int:
        return data * 2

    async def charge(self, price: int) -> str:
        return f"paid {price}"


async def refused(handler: Any, history: bytes, **options: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        await replay_check(handler, history, **options)
    return str(raised.value)


async def test_a_renamed_step_is_found() -> None:
    class Renamed(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            price = await ctx.step("quote", self.price, data)
            await ctx.sleep("grace", "1h")
            return await ctx.step("charge", self.charge, price)

    for until in ("1m", "1d"):
        said = await refused(Renamed(), await exported(Order(), 7, until=until))
        assert "the code calls 'quote', which is not recorded, and has not come to 'price'" in said


async def test_a_name_that_is_another_kind_of_call_is_found() -> None:
    class Changed(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            await ctx.sleep("price", "1h")
            return "x"

    said = await refused(Changed(), await exported(Order(), 7))
    assert "NonDeterminismError" in said
    assert "recorded 'price' as step" in said


async def test_a_name_that_is_used_twice_is_found() -> None:
    class Twice(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            await ctx.step("price", self.price, data)
            return str(await ctx.step("price", self.price, data))

    assert "DuplicateStepError" in await refused(Twice(), await exported(Order(), 7, until="1m"))


async def test_a_result_that_does_not_decode_by_todays_type_is_found() -> None:
    class Typed(Order):
        async def price(self, data: int) -> dict[str, int]:  # type: ignore[override]
            return {}

    assert "the recorded result of step 'price'" in await refused(Typed(), await exported(Order(), 7, until="1m"))


async def test_another_output_is_found() -> None:
    class Other(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            return (await super().run(ctx, data)).upper()

    said = await refused(Other(), await exported(Order(), 7))
    assert 'its output is "PAID 14" now, but is recorded as "paid 14"' in said


async def test_a_handler_that_fails_now_is_found() -> None:
    class Failing(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            await ctx.step("price", self.price, data)
            raise KeyError("tax")

    assert "KeyError" in await refused(Failing(), await exported(Order(), 7))
    assert "it fails now: KeyError" in await refused(Failing(), await exported(Order(), 7, until="1m"))


async def test_a_handler_that_no_longer_fails_is_found() -> None:
    class Fearless(Again):
        max_retries = 0

        async def run(self, ctx: TaskContext, data: None) -> str:
            raise KeyError("lost")

    class Cured(Fearless):
        async def run(self, ctx: TaskContext, data: None) -> str:
            return "fine"

    assert "it ends completed now, but is recorded as failed" in await refused(Cured(), await exported(Fearless()))


async def test_a_step_that_was_inserted_can_be_mocked() -> None:
    class Inserted(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            tax = await ctx.step("tax", self.price, data)
            price = await ctx.step("price", self.price, data)
            await ctx.sleep("grace", "1h")
            return f"{await ctx.step('charge', self.charge, price)}{tax}"

    history = await exported(Order(), 7, until="1m")
    assert "one that was inserted can be mocked" in await refused(Inserted(), history)
    [replayed] = await replay_check(Inserted, history, mocks={"tax": 3})
    assert (replayed.came_to, replayed.unmet) == ("wait", ())
    assert 'its output is "paid 143" now' in await refused(Inserted, await exported(Order(), 7), mocks={"tax": 3})


async def test_a_step_that_was_added_at_the_end_or_removed_is_no_problem() -> None:
    class Longer(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            receipt = await super().run(ctx, data)
            await ctx.step("mail", self.note, "mail")
            return receipt

    class Shorter(Order):
        async def run(self, ctx: TaskContext, data: int) -> str:
            return await ctx.step("charge", self.charge, 14)

    [replayed] = await replay_check(Longer, await exported(Order(), 7))
    assert (replayed.came_to, replayed.new) == ("new call", ("mail",))
    [replayed] = await replay_check(Shorter, await exported(Order(), 7))
    assert (replayed.came_to, replayed.unmet) == ("end", ("price", "grace"))


async def test_a_history_of_a_task_without_a_handler_is_found() -> None:
    assert "no handler for its task 'order'" in await refused(Waits(), await exported(Order(), 7))


async def test_all_problems_are_told_at_once() -> None:
    history = await exported(Order(), 7)
    with pytest.raises(AssertionError, match="2 of 3 histories do not fit"):
        await replay_check([Waits()], [history, await exported(Waits(), until="1m"), history])


# --- files ------------------------------------------------------------------------------------------------------------


async def test_histories_are_read_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(await exported(Order(), 7))
    (tmp_path / "b.json").write_bytes(await exported(Order(), 8))
    (tmp_path / "notes.txt").write_text("not a history")
    assert len(await replay_check(Order, tmp_path)) == 2
    assert len(await replay_check(Order, [tmp_path / "a.json"])) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="no history"):
        await replay_check(Order, tmp_path / "empty")


async def test_payloads_are_readable_in_the_file_and_come_back_as_they_were() -> None:
    class Odd(Order):
        async def charge(self, price: int) -> str:
            return 'é"\u2028\\ 漢'

    history = await exported(Odd(), 2**62)
    steps = {row["name"]: row for row in json.loads(history)["history"]["steps"]}
    assert steps["price"]["output"] == {"json": 2**63}
    assert steps["charge"]["output"] == {"json": 'é"\u2028\\ 漢'}
    [replayed] = await replay_check(Odd, history)
    assert replayed.came_to == "end"


class Reversed:
    """A codec after which no payload is JSON."""

    def encode(self, data: bytes) -> bytes:
        return b"\xff" + data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[:0:-1]


async def test_histories_of_encoded_payloads_replay_with_their_codec() -> None:
    payloads = Payloads(codec=Reversed())
    history = await exported(Order(), 7, payloads=payloads)
    assert b"paid" not in history
    [replayed] = await replay_check(Order, history, payloads=payloads)
    assert replayed.came_to == "end"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"format": 2}', b'{"format": 1}', b"\xff", b'{"format": 1, "history": 3}']
)
async def test_what_is_no_exported_history_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an exported history"):
        await replay_check(Order, data)
