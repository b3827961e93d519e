"""The Postgres backend, on asyncpg."""

from __future__ import annotations

from zart_postgres.scheduler import PostgresScheduler
from zart_postgres.url import from_url

__all__ = ["PostgresScheduler", "from_url"]
