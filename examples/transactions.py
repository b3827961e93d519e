"""Bookings in tables of one's own, in the database that the engine uses: no booking without its confirmation, and none twice.

A web request stores an order and starts its execution in one transaction. The execution takes the seats, and notes the mail that is to
be sent (an outbox), in one transaction with its own result. Two orders fit; the third finds the show sold out; the fourth is never
placed because its payment is declined.

The tables live in a SQLite file of its own, in a temporary directory. Run it with ``python -m examples.transactions``.
"""

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

from msgspec import Struct

from zart_core import DurableScheduler, StepFailed, TaskContext, TaskHandler, TaskRegistry, Worker, context
from zart_sqlite import SqliteScheduler

TABLES: Final = """
    CREATE TABLE orders (id TEXT PRIMARY KEY, seats INTEGER NOT NULL);
    CREATE TABLE bookings (id INTEGER PRIMARY KEY, order_id TEXT NOT NULL UNIQUE, seats INTEGER NOT NULL);
    CREATE TABLE outbox (id TEXT PRIMARY KEY, address TEXT NOT NULL, text TEXT NOT NULL);
"""
SEATS: Final = 10


class Order(Struct, frozen=True):
    order_id: str
    seats: int


class SoldOutError(Exception):
    """There are not enough seats left."""


class PaymentDeclinedError(Exception):
    """The card's bank said no."""


class BookSeats(TaskHandler[Order, str]):
    name = "book-seats"

    async def run(self, ctx: TaskContext, data: Order) -> str:
        try:
            # The booking, the mail and the checkpoint are committed together: a crash leaves all of them or none.
            booking = await ctx.transaction("book", self.book, data)
        except StepFailed as failed:
            return f"order {data.order_id}: {failed.error}"
        return f"order {data.order_id}: booking {booking} for {data.seats} seats"

    def book(self, db: sqlite3.Connection, order: Order) -> int:
        taken: int = db.execute("SELECT coalesce(sum(seats), 0) FROM bookings").fetchone()[0]
        db.execute(
            "INSERT INTO outbox VALUES (?, ?, ?)",
            (context().idempotency_key, f"{order.order_id}@example.org", f"{order.seats} seats are yours"),
        )
        if taken + order.seats > SEATS:
            raise SoldOutError(f"only {SEATS - taken} seats left")  # the mail is taken back too
        row: tuple[int] = db.execute(
            "INSERT INTO bookings (order_id, seats) VALUES (?, ?) RETURNING id", (order.order_id, order.seats)
        ).fetchone()
        return row[0]


async def place(durable: DurableScheduler, path: Path, order: Order, *, card: str = "good") -> None:
    """What a web request does: the order is stored and its execution is started, or neither."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO orders VALUES (?, ?)", (order.order_id, order.seats))
        await durable.start(BookSeats, order, execution_id=f"order-{order.order_id}", tx=db)
        if card != "good":
            raise PaymentDeclinedError(f"the card of order {order.order_id} was declined")


async def main(folder: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as fresh:
        path = Path(folder or fresh) / "bookings.db"
        registry = TaskRegistry()
        registry.register(BookSeats())
        async with SqliteScheduler(path) as scheduler, Worker(scheduler, registry):
            with closing(sqlite3.connect(path)) as db:
                db.executescript(TABLES)
            durable = DurableScheduler(scheduler)
            for order in (Order("ada", 6), Order("bob", 4), Order("carol", 3)):
                await place(durable, path, order)
                print(await durable.handle(f"order-{order.order_id}", BookSeats).result(timeout="60s"))
            try:
                await place(durable, path, Order("dave", 1), card="stolen")
            except PaymentDeclinedError as error:
                print(error)
        with closing(sqlite3.connect(path)) as db:
            for what in ("orders", "bookings", "outbox"):
                print(f"{what}: {db.execute(f'SELECT count(*) FROM {what}').fetchone()[0]}")  # noqa: S608 - one of three names


if __name__ == "__main__":
    asyncio.run(main())
