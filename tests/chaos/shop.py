"""Tables of a user beside the engine's, on either store: bookings, made by transactions of steps, and orders, made with ``tx=``."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE

# No keys: what is made twice is there twice.
_TABLES = """
    DROP TABLE IF EXISTS bookings;
    DROP TABLE IF EXISTS orders;
    CREATE TABLE bookings (id {id}, execution TEXT, number INTEGER);
    CREATE TABLE orders (execution TEXT, paid INTEGER DEFAULT 0);
"""
# One statement, so that both tables are seen in one snapshot.
_BOTH = """
    SELECT 'booked' AS what, execution, 'book-' || number AS step FROM bookings
    UNION ALL
    SELECT 'recorded', r.execution_id, s.name FROM {steps} AS s JOIN {runs} AS r ON r.run_id = s.run_id
    WHERE s.name LIKE 'book-%' AND s.status = 'completed'
"""
_SALES = """
    SELECT 'order' AS what, execution FROM orders UNION ALL
    SELECT 'execution', execution_id FROM {runs} UNION ALL
    SELECT 'payment', execution FROM orders WHERE paid = 1 UNION ALL
    SELECT 'event', r.execution_id FROM {runs} AS r JOIN {events} AS e ON e.run_id = r.run_id
"""


class Shop:
    """Looks into the tables of ``place``'s store."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def open(self) -> None:
        """Make the tables, empty."""
        if STORE == "sqlite":
            with closing(self._file()) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_TABLES.format(id="INTEGER PRIMARY KEY"))
            return
        async with self._server() as connection:
            await connection.execute(_TABLES.format(id="bigint GENERATED ALWAYS AS IDENTITY"))

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query without parameters answers."""
        if STORE == "sqlite":
            with closing(self._file()) as db:
                return db.execute(query).fetchall()
        async with self._server() as connection:
            return [tuple(row) for row in await connection.fetch(query)]

    async def booked(self) -> list[tuple[str, str]]:
        """Every booking by execution and step, after a look at both tables at once: they say the same."""
        rows = await self.rows(_named(_BOTH))
        booked, recorded = (sorted(row[1:] for row in rows if row[0] == what) for what in ("booked", "recorded"))
        assert booked == recorded, "a booking without its row, or a row without its booking"
        return booked

    async def sold(self) -> tuple[set[str], set[str]]:
        """The orders, and those that are paid: each order has its execution, and each payment its event."""
        rows = await self.rows(_named(_SALES))
        found = {
            what: sorted(row[1] for row in rows if row[0] == what)
            for what in ("order", "execution", "payment", "event")
        }
        assert found["order"] == found["execution"], "an order without its execution, or an execution without its order"
        assert found["payment"] == found["event"], "a payment without its event, or an event without its payment"
        return set(found["order"]), set(found["payment"])

    def _file(self) -> sqlite3.Connection:
        return sqlite3.connect(self._place.folder / "zart.db", isolation_level=None, timeout=30)

    @contextlib.asynccontextmanager
    async def _server(self) -> AsyncIterator[Any]:
        from tests.postgres.server import connection_to

        async with connection_to(self._place.url) as connection:
            yield connection


def _named(query: str) -> str:
    """``query`` with the names of our tables."""
    prefix = "zart_" if STORE == "sqlite" else "zart."
    return query.format(**{table: prefix + table for table in ("runs", "steps", "events")})
