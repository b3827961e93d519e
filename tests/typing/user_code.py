"""User code that must type-check: what handles, steps and outcomes tell a user's type checker."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from functools import partial
from typing import Any, assert_type

from msgspec import Struct

import zart_core
from zart_core import (
    BusinessErr,
    DurableScheduler,
    Execution,
    ExecutionHandle,
    Ok,
    Pause,
    Recurrence,
    RerunHandle,
    RetryConfig,
    StartRequest,
    Step,
    StepHandle,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    ZartErr,
    connect,
    zart_durable,
    zart_step,
)
from zart_core import sleep as durable_sleep
from zart_core import step as durable_step
from zart_postgres import PostgresScheduler
from zart_sqlite import SqliteScheduler


class Connection:
    """Stands in for asyncpg's: with a type that is Any to it, mypy cannot choose between the overloads."""

    async def fetchval(self, query: str, *args: object) -> str:
        return query


class Order(Struct):
    order_id: str
    amount: int


class Receipt(Struct):
    number: str


class Checkout(TaskHandler[Order, Receipt]):
    name = "checkout"

    async def run(self, ctx: TaskContext, data: Order) -> Receipt:
        receipt = await ctx.step("charge", self.charge, data, retry=RetryConfig.exponential(3, "2s"), timeout="30s")
        assert_type(receipt, Receipt)
        assert_type(await ctx.step("count", self.count, "a", 2), int)
        assert_type(await ctx.step("count-default", self.count, "a"), int)
        assert_type(await ctx.step_or("maybe", self.charge, data, default=None), Receipt | None)
        assert_type(await ctx.loop("many", ["a", "b"], self.count), list[int])
        assert_type(await ctx.wait_for_event("approval", Order, timeout="1d"), Order)
        assert_type(await ctx.wait_for_event("anything"), Any)
        assert_type(await ctx.wait_for_event("numbers", list[int]), list[int])
        assert_type(await ctx.capture("id", lambda: "x"), str)
        assert_type(await ctx.now("time"), datetime)
        assert_type(await ctx.step("lambda", lambda: 5), int)
        assert_type(await ctx.step("partial", partial(self.count, "a", times=3)), int)
        assert_type(await ctx.step("many-arguments", self.mix, 1, "b", [2.5]), tuple[int, str])
        assert_type(await ctx.step_or_else("plain", self.charge, data, fallback=lambda error: None), Receipt | None)
        assert_type(await ctx.step_or_else("async", self.charge, data, fallback=self.explain), Receipt | str)
        assert_type(await ctx.transaction("book", self.book, data), int)
        assert_type(await ctx.transaction("book-async", self.book_async, data, retry="fixed(3, 1s)"), Receipt)
        assert_type(await ctx.transaction("look", lambda db: 5, timeout="1s", timeout_scope="per_attempt"), int)
        await self.fan_out(ctx, data)
        match await ctx.outcome("charge-again", self.charge, data):
            case Ok(value):
                assert_type(value, Receipt)
            case BusinessErr(error):
                assert_type(error, BaseException)
            case ZartErr():
                raise RuntimeError("charged by nobody")
        return receipt

    async def fan_out(self, ctx: TaskContext, data: Order) -> None:
        charges = [ctx.schedule(f"charge-{n}", self.charge, data, retry="fixed(2, 1s)") for n in range(3)]
        assert_type(charges, list[StepHandle[Receipt]])
        assert_type(await ctx.wait_all(charges), list[Receipt])
        assert_type(await ctx.wait_any(charges), tuple[int, Receipt])
        assert_type(await ctx.wait_first(charges, 2), list[tuple[int, Receipt]])
        for result in await ctx.wait(charges):
            assert_type(result, Ok[Receipt] | BusinessErr[BaseException] | ZartErr)
        count = ctx.schedule("count-later", self.count, "a", 2)
        assert_type(count, StepHandle[int])
        assert_type(ctx.schedule("lambda-later", lambda: 5), StepHandle[int])
        assert_type(ctx.schedule("step-later", charge_card, "1", 2), StepHandle[Receipt])
        nap = ctx.schedule_sleep("nap", "1h")
        assert_type(nap, StepHandle[None])
        approval = ctx.schedule_event("approval", Order, timeout="1d")
        assert_type(approval, StepHandle[Order])
        assert_type(ctx.schedule_event("anything"), StepHandle[Any])
        child = ctx.schedule_child("child", Checkout, data)
        assert_type(child, StepHandle[Receipt])
        assert_type(ctx.schedule_child("by-name", "checkout", {}), StepHandle[Any])
        # Handles of several kinds: a list of their common type.
        mixed: list[StepHandle[Order | Receipt | None]] = [approval, nap, child]
        assert_type(await ctx.wait_any(mixed), tuple[int, Order | Receipt | None])
        assert_type(await ctx.map("all", ["a", "b"], self.count, concurrency=2), list[int])
        assert_type(await ctx.map("charge-all", [data], self.charge, retry="fixed(1, 1s)"), list[Receipt])

    async def charge(self, order: Order) -> Receipt:
        return Receipt(order.order_id)

    def book(self, db: sqlite3.Connection, order: Order) -> int:
        row: tuple[int] = db.execute("INSERT INTO orders VALUES (?) RETURNING rowid", (order.order_id,)).fetchone()
        return row[0]

    async def book_async(self, connection: Connection, order: Order) -> Receipt:
        return Receipt(await connection.fetchval("INSERT INTO orders VALUES ($1) RETURNING id", order.order_id))

    async def explain(self, error: BaseException) -> str:
        return str(error)

    async def mix(self, number: int, text: str, factors: list[float]) -> tuple[int, str]:
        return number * len(factors), text

    def count(self, text: str, times: int = 1) -> int:
        return len(text) * times


@zart_step("charge-{order_id}", retry="exponential(3, 2s)", timeout="30s")
async def charge_card(order_id: str, amount: int, *, currency: str = "EUR") -> Receipt:
    return Receipt(f"{order_id}{amount}{currency}")


@zart_step("count-{text}")
def count(text: str) -> int:
    return len(text)


@zart_durable("checkout-function", timeout="10m")
async def checkout(data: Order) -> Receipt:
    assert_type(await charge_card(data.order_id, data.amount, currency="USD"), Receipt)
    assert_type(await charge_card(data.order_id, 2).named("again"), Receipt)
    assert_type(await count("a"), int)
    await durable_sleep("settle", "60s")
    assert_type(await durable_step("free", count.fn, "a"), Any)
    assert_type(await zart_core.outcome("free-outcome", count, "a"), Ok[int] | BusinessErr[BaseException] | ZartErr)
    handle = zart_core.schedule("free-later", count.fn, "a")
    await zart_core.wait_all([handle, zart_core.schedule_sleep("free-nap", 5)])
    assert_type(await zart_core.map("free-map", ["a"], checkout_item), list[int])
    return Receipt("1")


async def checkout_item(item: str) -> int:
    return len(item)


@zart_durable("with-context")
async def with_context(ctx: TaskContext, data: Order) -> int:
    assert_type(await ctx.step("renamed", charge_card, data.order_id, 1), Receipt)
    async with ctx.saga():
        await ctx.step("undoable", count, "a", undo=count)
    assert_type(ctx.patched("marker"), bool)
    assert_type(await ctx.run_child("child", Checkout, data), Receipt)
    assert_type(await ctx.run_child("function", checkout, data, "an-id"), Receipt)
    assert_type(await ctx.run_child("by-name", "checkout", {"order_id": "1"}), Any)
    assert_type(await ctx.start_child("detached", Checkout, data), str)
    return 1


@zart_durable("looping")
async def looping(ctx: TaskContext, data: int) -> int:
    await ctx.continue_as_new(data + 1)  # does not return, so no value has to be


class Shop:
    @zart_step("sell-{item}")
    async def sell(self, item: str) -> Receipt:
        return Receipt(item)


async def sell(shop: Shop) -> None:
    assert_type(await shop.sell("apple"), Receipt)


async def hold(registry: TaskRegistry) -> None:
    """A backend that is made by hand is one for all that take a scheduler."""
    for client in (
        DurableScheduler(PostgresScheduler("postgresql://db/app")),
        DurableScheduler(SqliteScheduler("zart.db")),
    ):
        assert_type(client, DurableScheduler)
    async with PostgresScheduler("postgresql://db/app") as scheduler, Worker(scheduler, registry):
        assert_type(scheduler, PostgresScheduler)


async def use() -> Receipt:
    registry = TaskRegistry()
    registry.register(Checkout())
    durable = DurableScheduler(connect("sqlite://"))
    handle = await durable.start(Checkout, Order("1", 2))
    assert_type(handle, ExecutionHandle[Receipt])
    assert_type(await durable.start_and_wait(Checkout, Order("2", 2)), Receipt)
    assert_type(durable.handle("1", Checkout), ExecutionHandle[Receipt])
    assert_type(await handle.result(), Receipt)
    with sqlite3.connect("zart.db") as db:
        assert_type(await durable.start(Checkout, Order("4", 2), tx=db), ExecutionHandle[Receipt])
        assert_type(
            await durable.start_many([StartRequest(Checkout, Order("5", 2))], tx=db), list[ExecutionHandle[Any]]
        )
        await durable.offer_event("4", "approval", tx=db)
    assert_type(await durable.start("checkout", {"order_id": "3"}), ExecutionHandle[Any])
    assert_type(await durable.handle("1").result(), Any)
    registry.register(checkout)
    assert_type(await durable.start_and_wait(checkout, Order("4", 2)), Receipt)
    assert_type(await durable.start(with_context, Order("5", 2)), ExecutionHandle[int])
    assert_type(await durable.wait("1"), Execution)
    assert_type((await durable.history("1")).steps, list[Step])
    assert_type(await durable.runs("1"), list[Execution])
    assert_type(await durable.restart("1", Order("1", 3)), ExecutionHandle[Any])
    assert_type(await durable.rerun("1", ["charge"]), RerunHandle)
    assert_type((await durable.rerun("1")).stale, tuple[str, ...])
    assert_type(await durable.fork("1", "charge"), ExecutionHandle[Any])
    assert_type(await durable.retry_step("1", "charge"), ExecutionHandle[Any])
    rule = await durable.pause(task=Checkout, step="send-*", reason="why")
    assert_type(await durable.resume(rule), bool)
    assert_type(await durable.pauses(), list[Pause])
    assert_type(await durable.purge(older_than="90d", statuses="completed"), int)
    nightly = await durable.recurring("nightly", Checkout, Order("1", 2), cron="0 2 * * *", timezone="Europe/Berlin")
    assert_type(nightly, Recurrence)
    assert_type(
        await durable.recurring("by-name", "checkout", {"order_id": "1"}, every="5m", overlap="allow"), Recurrence
    )
    assert_type(await durable.recurring("function", checkout, Order("1", 2), every=60, catch_up="all"), Recurrence)
    assert_type(nightly.next_times, list[datetime])
    registry.recurring("nightly", Checkout, Order("1", 2), every=timedelta(minutes=5))
    assert_type(await durable.recurrings(), list[Recurrence])
    assert_type(await durable.stop_recurring("nightly"), bool)
    return await handle.result(timeout="60s")
