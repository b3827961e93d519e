"""New SQLite files with the tables of this version, copied instead of made: a test's opening takes a quarter of the time."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from pathlib import Path

from zart_sqlite.database import Database
from zart_sqlite.schema import migrate


def make_file(path: Path) -> None:
    """An empty store at ``path``. Tests of the opening and the migration of files begin without one."""
    path.write_bytes(_template())


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zart.db"
        database = Database(path, "full", 30.0)
        with contextlib.closing(database.connect()) as db:
            migrate(database, db, now=0)
        # Closed by its last user, the file is complete without its log.
        return path.read_bytes()
