"""User code that must type-check: what handles, steps and outcomes tell a user's type checker."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from functools import partial
from typing import Any, assert_type

from msgspec import Struct

from zart_core import (
    BusinessErr,
    DurableScheduler,
    Execution,
    ExecutionHandle,
    Ok,
    RetryConfig,
    StartRequest,
    Step,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    ZartErr,
    connect,
)


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
    assert_type(await durable.wait("1"), Execution)
    assert_type((await durable.history("1")).steps, list[Step])
    return await handle.result(timeout="60s")
