"""Bookings in tables of one's own, in the database that the engine uses: no booking without its confirmation, and none twice.

A web request stores an order and starts its execution in one transaction. The execution takes the seats, and notes the mail that is to
be sent (an outbox), in one transaction with its own result. Two orders fit; the third finds the show sold out; the fourth is never
placed because its payment is declined.

The tables live beside the engine's, in the database that ``ZART_DATABASE_URL`` names; without one in a SQLite file of its own, in a temporary
directory. On SQLite a transaction's function is a plain one, on Postgres an async one: each has a class here, and the story is the same.
Run it with ``python -m examples.transactions``.
"""

import asyncio
import os
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from contextlib import closing
from typing import Any, Final, cast
from uuid import uuid4

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, StepFailed, TaskContext, TaskHandler, TaskRegistry, Worker, context

TABLES: Final = """
    CREATE TABLE IF NOT EXISTS orders (show TEXT NOT NULL, customer TEXT NOT NULL, seats INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS bookings (show TEXT NOT NULL, customer TEXT NOT NULL, seats INTEGER NOT NULL, UNIQUE (show, customer));
    CREATE TABLE IF NOT EXISTS outbox (id TEXT PRIMARY KEY, show TEXT NOT NULL, address TEXT NOT NULL, text TEXT NOT NULL);
"""
SEATS: Final = 10


class Order(Struct, frozen=True):
    show: str
    customer: str
    seats: int

    @property
    def id(self) -> str:
        return f"order-{self.show}-{self.customer}"


class SoldOutError(Exception):
    """There are not enough seats left."""


class PaymentDeclinedError(Exception):
    """The card's bank said no."""


class BookSeats(TaskHandler[Order, str]):
    name = "book-seats"

    async def run(self, ctx: TaskContext, data: Order) -> str:
        try:
            left = await self.take_seats(ctx, data)
        except StepFailed as failed:
            return f"order of {data.customer}: {failed.error}"
        return f"order of {data.customer}: {data.seats} seats booked, {left} left"

    async def take_seats(self, ctx: TaskContext, order: Order) -> int:
        """The booking, the mail and the checkpoint are committed together: a crash leaves all of them or none."""
        raise NotImplementedError


class BookSeatsOnSqlite(BookSeats):
    async def take_seats(self, ctx: TaskContext, order: Order) -> int:
        return await ctx.transaction("book", self.book, order)

    def book(self, db: sqlite3.Connection, order: Order) -> int:
        mail = (
            context().idempotency_key,
            order.show,
            f"{order.customer}@example.org",
            f"{order.seats} seats are yours",
        )
        db.execute("INSERT INTO outbox VALUES (?, ?, ?, ?)", mail)
        db.execute("INSERT INTO bookings VALUES (?, ?, ?)", (order.show, order.customer, order.seats))
        taken: int = db.execute("SELECT sum(seats) FROM bookings WHERE show = ?", (order.show,)).fetchone()[0]
        if taken > SEATS:
            raise SoldOutError(f"only {SEATS - taken + order.seats} seats left")  # the mail is taken back too
        return SEATS - taken


class BookSeatsOnPostgres(BookSeats):
    async def take_seats(self, ctx: TaskContext, order: Order) -> int:
        return await ctx.transaction("book", self.book, order)

    async def book(self, db: Any, order: Order) -> int:
        # ``db`` is an asyncpg.Connection. On a server, transactions run side by side: of two that book the same show, one waits for the other.
        await db.execute("SELECT pg_advisory_xact_lock(hashtext($1))", order.show)
        mail = (
            context().idempotency_key,
            order.show,
            f"{order.customer}@example.org",
            f"{order.seats} seats are yours",
        )
        await db.execute("INSERT INTO outbox VALUES ($1, $2, $3, $4)", *mail)
        await db.execute("INSERT INTO bookings VALUES ($1, $2, $3)", order.show, order.customer, order.seats)
        taken: int = await db.fetchval("SELECT sum(seats) FROM bookings WHERE show = $1", order.show)
        if taken > SEATS:
            raise SoldOutError(f"only {SEATS - taken + order.seats} seats left")
        return SEATS - taken


class Shop(ABC):
    """What the web requests do, on one kind of database."""

    handler: BookSeats

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def open(self) -> None:
        """Make the tables."""

    @abstractmethod
    async def place(self, durable: DurableScheduler, order: Order, *, card: str = "good") -> None:
        """The order is stored and its execution is started, or neither."""

    @abstractmethod
    async def count(self, table: str, show: str) -> int:
        """How many rows of a table are about this show."""


class SqliteShop(Shop):
    handler = BookSeatsOnSqlite()

    async def open(self) -> None:
        with closing(self._connect()) as db:
            db.executescript(TABLES)

    async def place(self, durable: DurableScheduler, order: Order, *, card: str = "good") -> None:
        with closing(self._connect()) as db, db:
            db.execute("INSERT INTO orders VALUES (?, ?, ?)", (order.show, order.customer, order.seats))
            await durable.start(BookSeats, order, execution_id=order.id, tx=db)
            pay(order, card)

    async def count(self, table: str, show: str) -> int:
        with closing(self._connect()) as db:
            found: int = db.execute(f"SELECT count(*) FROM {table} WHERE show = ?", (show,)).fetchone()[0]  # noqa: S608 - one of three names
            return found

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.url.removeprefix("sqlite:///"))


class PostgresShop(Shop):
    handler = BookSeatsOnPostgres()

    async def open(self) -> None:
        db = await self._connect()
        try:
            await db.execute(TABLES)
        finally:
            await db.close()

    async def place(self, durable: DurableScheduler, order: Order, *, card: str = "good") -> None:
        db = await self._connect()
        try:
            async with db.transaction():
                await db.execute("INSERT INTO orders VALUES ($1, $2, $3)", order.show, order.customer, order.seats)
                await durable.start(BookSeats, order, execution_id=order.id, tx=db)
                pay(order, card)
        finally:
            await db.close()

    async def count(self, table: str, show: str) -> int:
        db = await self._connect()
        try:
            found: int = await db.fetchval(f"SELECT count(*) FROM {table} WHERE show = $1", show)  # noqa: S608 - one of three names
            return found
        finally:
            await db.close()

    async def _connect(self) -> Any:
        import asyncpg  # noqa: PLC0415 - only those need it who have a server

        return await cast(Any, asyncpg).connect(self.url)  # its annotations are incomplete


def pay(order: Order, card: str) -> None:
    if card != "good":
        raise PaymentDeclinedError(f"the card of {order.customer} was declined")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = os.environ.get("ZART_DATABASE_URL") or f"sqlite:///{folder}/bookings.db"
        shop = SqliteShop(url) if url.startswith("sqlite:") else PostgresShop(url)
        registry = TaskRegistry()
        registry.register(shop.handler)
        show = uuid4().hex[:8]  # the database may have seen this before
        async with database(url) as scheduler, Worker(scheduler, registry):
            await shop.open()
            durable = DurableScheduler(scheduler)
            for order in (Order(show, "Ada", 6), Order(show, "Bob", 4), Order(show, "Carol", 3)):
                await shop.place(durable, order)
                print(await durable.handle(order.id, BookSeats).result(timeout="60s"))
            try:
                await shop.place(durable, Order(show, "Dave", 1), card="stolen")
            except PaymentDeclinedError as error:
                print(error)
            for table in ("orders", "bookings", "outbox"):
                print(f"{table}: {await shop.count(table, show)}")


if __name__ == "__main__":
    asyncio.run(main())
