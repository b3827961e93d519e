"""The database that the examples and the demo use: the one that ``ZART_DATABASE_URL`` names."""

import os
from urllib.parse import urlsplit

from zart_core import Scheduler, connect


def database(default: str = "sqlite://") -> Scheduler:
    """A scheduler for the environment's database; without one, for SQLite in memory, or what ``default`` says."""
    url = os.environ.get("ZART_DATABASE_URL") or default
    if urlsplit(url).scheme in ("postgresql", "postgres"):
        # In production the tables are made by a command of its own, `python -m zart_postgres migrate`, with other rights than
        # the workers have. An example has to run on an empty database too.
        return connect(url, auto_migrate=True)
    return connect(url)


def shared_url(folder: str) -> str:
    """The environment's database if several processes can share it; else a SQLite file in ``folder``."""
    url = os.environ.get("ZART_DATABASE_URL") or "sqlite://"
    return f"sqlite:///{folder}/example.db" if url == "sqlite://" else url
