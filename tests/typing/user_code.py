"""User code that must type-check: what handles, steps and outcomes tell a user's type checker."""

from __future__ import annotations

import sqlite3
from datetime import datetime
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
    RerunHandle,
    RetryConfig,
    StartRequest,
    Step,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    ZartErr,
    connect,
    zart_durable,
    zart_step,
)
from zart_core import sleep as durable_sleep
from zart_core import step as durable_step


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
        match await ctx.outcome("charge-again", self.charge, data):
            case Ok(value):
                assert_type(value, Receipt)
            case BusinessErr(error):
                assert_type(error, BaseException)
            case ZartErr():
                raise RuntimeError("charged by nobody")
        return receipt

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
    return Receipt("1")


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
    return await handle.result(timeout="60s")
