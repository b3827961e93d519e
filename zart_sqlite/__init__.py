"""The SQLite backend: one file, or memory; no server."""

from __future__ import annotations

from zart_sqlite.scheduler import SqliteScheduler
from zart_sqlite.url import from_url

__all__ = ["SqliteScheduler", "from_url"]
