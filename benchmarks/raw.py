"""The limits by themselves: what the bare database reaches, with one client and with many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from benchmarks.bench import Bench, Repetition, per_second
from benchmarks.postgres import PostgresLimits
from benchmarks.readings import Reading
from benchmarks.store import Wrong

_ROWS: Final = 100


@asynccontextmanager
async def sqlite_raw(bench: Bench) -> AsyncIterator[Repetition]:
    async def repetition() -> list[Reading]:
        return [
            _reading("sqlite3, single-row commits", per_second(await bench.limits.commits())),
            _reading(f"sqlite3, rows in {_ROWS}-row commits", await bench.limits.rows_per_second(_ROWS)),
        ]

    yield repetition


@asynccontextmanager
async def postgres_raw(bench: Bench) -> AsyncIterator[Repetition]:
    limits = bench.limits
    if not isinstance(limits, PostgresLimits):
        raise Wrong("these are limits of Postgres")

    async def repetition() -> list[Reading]:
        return [
            *[
                _reading(f"pgbench, single-row INSERT, clients: {clients}", await limits.clients(clients))
                for clients in (1, 8, 32)
            ],
            _reading("asyncpg, single-row INSERT in sequence", per_second(await limits.commits())),
            _reading(f"asyncpg, rows by unnest, {_ROWS} a commit", await limits.rows_per_second(_ROWS)),
        ]

    yield repetition


def _reading(label: str, rate: float) -> Reading:
    return Reading(label=label, unit="per s", ours=rate)
