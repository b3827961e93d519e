"""User code that must not type-check: every line marked below is refused by the type checkers, and no other.

The marks keep `make check` quiet, and mypy itself complains about a mark that is not needed. `test_typing.py` takes them away and
looks whether mypy and pyright find exactly these lines.
"""

from __future__ import annotations

import sqlite3
from datetime import timedelta

from msgspec import Struct

from zart_core import (
    DurableScheduler,
    ExecutionFailure,
    Ok,
    RetryConfig,
    StartRequest,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    connect,
    run_child,
    zart_durable,
    zart_step,
)


class Order(Struct):
    order_id: str
    amount: int


class Receipt(Struct):
    number: str


class Checkout(TaskHandler[Order, Receipt]):
    name = "checkout"

    async def run(self, ctx: TaskContext, data: Order) -> Receipt:
        # A step's arguments are those of its function.
        await ctx.step("charge", self.charge, "order 1")  # type: ignore[arg-type]
        await ctx.step("charge", self.charge)  # type: ignore[arg-type, call-arg]
        await ctx.step("charge", self.charge, data, data)  # type: ignore[arg-type, call-arg]
        await ctx.step("count", self.count, "a", "twice")  # type: ignore[arg-type, call-arg]
        await ctx.outcome("charge", self.charge, data.amount)  # type: ignore[arg-type]
        await ctx.step_or("charge", self.charge, data.order_id, default=None)  # type: ignore[arg-type]
        await ctx.loop("charge", ["order 1"], self.charge)  # type: ignore[arg-type]
        await ctx.step("charge", "charge", data)  # type: ignore[call-overload]
        await ctx.step("charge", self.charge(data))  # type: ignore[call-overload]
        await ctx.step(1, self.charge, data)  # type: ignore[call-overload]
        # A step's value is its function's.
        number: int = await ctx.step("charge", self.charge, data)  # type: ignore[arg-type]
        text: str = await ctx.step("count", self.count, "a")  # type: ignore[arg-type]
        sure: Receipt = await ctx.step_or("charge", self.charge, data, default=None)  # type: ignore[arg-type]
        several: list[str] = await ctx.loop("count", ["a"], self.count)  # type: ignore[arg-type]
        both: str = await ctx.step_or_else("charge", self.charge, data, fallback=lambda error: 5)  # type: ignore[arg-type, return-value]
        _ = (await ctx.outcome("charge", self.charge, data)).value  # type: ignore[union-attr]
        match await ctx.outcome("charge", self.charge, data):
            case Ok(value):
                _ = value.amount  # type: ignore[attr-defined]
            case _:
                pass
        captured: int = await ctx.capture("id", lambda: "x")  # type: ignore[arg-type, return-value]
        event = await ctx.wait_for_event("approval", Order)
        _ = event.number  # type: ignore[attr-defined]
        # A step's options.
        await ctx.step("charge", self.charge, data, retires=3)  # type: ignore[call-overload]
        await ctx.step("charge", self.charge, data, retry=3)  # type: ignore[call-overload]
        await ctx.step("charge", self.charge, data, timeout=[30])  # type: ignore[call-overload]
        await ctx.step("charge", self.charge, data, timeout_scope="each")  # type: ignore[call-overload]
        await ctx.step_or("charge", self.charge, data)  # type: ignore[call-overload]
        RetryConfig.fixed("3", "1s")  # type: ignore[arg-type]
        RetryConfig.exponential(3)  # type: ignore[call-arg]
        # A transaction's arguments are those of its function after the connection, its value is its function's.
        await ctx.transaction("book", self.book, "order 1")  # type: ignore[arg-type]
        await ctx.transaction("book", self.book)  # type: ignore[arg-type, call-arg]
        await ctx.transaction("book", self.book, data, at_most_once=True)  # type: ignore[call-overload]
        booking: str = await ctx.transaction("book", self.book, data)  # type: ignore[arg-type]
        # Other calls.
        await ctx.sleep("nap", None)  # type: ignore[arg-type]
        await ctx.sleep_until("nap", timedelta(hours=1))  # type: ignore[arg-type]
        await ctx.capture("id", self.charge)  # type: ignore[arg-type, unused-coroutine]
        ctx.execution_id = "another"  # type: ignore[misc]
        return number, text, sure, several, both, booking, captured, event  # type: ignore[return-value]

    async def fan_out(self, ctx: TaskContext, data: Order) -> object:
        ctx.schedule("charge", self.charge, "order 1")  # type: ignore[arg-type]
        ctx.schedule("charge", self.charge)  # type: ignore[arg-type, call-arg]
        ctx.schedule("charge", self.charge, data, retires=3)  # type: ignore[call-overload]
        ctx.schedule("charge", self.charge(data))  # type: ignore[call-overload]
        charges = [ctx.schedule("charge", self.charge, data)]
        numbers: list[int] = await ctx.wait_all(charges)  # type: ignore[arg-type]
        await ctx.wait_all([self.charge(data)])  # type: ignore[arg-type]
        await ctx.wait(ctx.schedule("charge", self.charge, data))  # type: ignore[arg-type]
        won: tuple[int, str] = await ctx.wait_any(charges)  # type: ignore[arg-type]
        await ctx.wait_first(charges)  # type: ignore[call-arg]
        await ctx.schedule_sleep("nap", "1h")  # type: ignore[misc]
        ctx.schedule_child("child", Checkout, "order 1")  # type: ignore[misc]
        mapped: list[str] = await ctx.map("count", ["a"], self.count)  # type: ignore[arg-type]
        await ctx.map("charge", ["order 1"], self.charge)  # type: ignore[arg-type]
        await ctx.map("count", ["a"], self.count, concurrency="2")  # type: ignore[call-overload]
        return numbers, won, mapped

    async def on_failure(self, ctx: TaskContext, data: Order, failure: ExecutionFailure) -> Receipt:
        return failure.step  # type: ignore[return-value]

    async def charge(self, order: Order) -> Receipt:
        return Receipt(order.order_id)

    def count(self, text: str, times: int = 1) -> int:
        return len(text) * times

    def book(self, db: sqlite3.Connection, order: Order) -> int:
        return db.total_changes


class OtherInput(TaskHandler[Order, Receipt]):
    async def run(self, ctx: TaskContext, data: Receipt) -> Receipt:  # type: ignore[override]
        return data


class OtherOutput(TaskHandler[Order, Receipt]):
    async def run(self, ctx: TaskContext, data: Order) -> Order:  # type: ignore[override]
        return data


@zart_step("count-{text}")
def count(text: str) -> int:
    return len(text)


@zart_durable("function")
async def function(data: Order) -> Receipt:
    count(1)  # type: ignore[arg-type]
    count("a", 2)  # type: ignore[call-arg]
    text: str = await count("a")  # type: ignore[assignment]
    text = await count("a").named("b")  # type: ignore[assignment]
    count("a").named(2)  # type: ignore[arg-type]
    await run_child("child", function, "order 1")  # type: ignore[misc]
    await run_child("child", Checkout)  # type: ignore[call-overload]
    return Receipt(text)


zart_step("x", retries=3)  # type: ignore[call-arg]


class Idle(TaskHandler[Order, Receipt]):
    name = "idle"


async def use(durable: DurableScheduler, registry: TaskRegistry) -> None:
    Idle()  # type: ignore[abstract]
    registry.register(Checkout)  # type: ignore[call-overload]
    registry.register("checkout")  # type: ignore[call-overload]
    # What is started takes its handler's input.
    await durable.start(Checkout, "order 1")  # type: ignore[misc]
    await durable.start(Checkout)  # type: ignore[call-overload]
    await durable.start(Checkout())  # type: ignore[call-overload]
    await durable.start("checkout", {}, if_exists="replace")  # type: ignore[call-overload]
    await durable.start_and_wait(Checkout, Receipt("1"))  # type: ignore[misc]
    StartRequest("checkout", priority="high")  # type: ignore[arg-type]
    # What it gives is its handler's output.
    handle = await durable.start(Checkout, Order("1", 2))
    order: Order = await handle.result()  # type: ignore[assignment]
    amount: int = await durable.start_and_wait(Checkout, order)  # type: ignore[arg-type]
    await durable.handle("1", Checkout).result(timeout=[amount])  # type: ignore[arg-type]
    number: int = await durable.handle("1", Checkout).result()  # type: ignore[assignment]
    (await handle.status()).finished_at.isoformat()  # type: ignore[union-attr]
    await durable.list(status="done")  # type: ignore[arg-type]
    await durable.start(function, "order 1")  # type: ignore[misc]
    # What recurs takes its handler's input too.
    await durable.recurring("nightly", Checkout, "order 1", every="5m")  # type: ignore[misc]
    await durable.recurring("nightly", "checkout", every="5m", overlap="wait")  # type: ignore[arg-type]
    registry.recurring("nightly", Checkout, Order("1", 2), cron=5)  # type: ignore[arg-type]
    # Running.
    DurableScheduler("sqlite://")  # type: ignore[arg-type]
    Worker(registry, connect("sqlite://"))  # type: ignore[arg-type]
    WorkerConfig(replay="never")  # type: ignore[arg-type]
    WorkerConfig(number)  # type: ignore[call-arg]
