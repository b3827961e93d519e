"""``python -m zart_postgres migrate``: makes the tables, or brings them to this version."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from zart_core.errors import ZartError
from zart_postgres.schema import newest
from zart_postgres.url import from_url


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 could not be done, 2 not understood."""
    parser = argparse.ArgumentParser(prog="python -m zart_postgres", description="Zart's tables in Postgres")
    commands = parser.add_subparsers(dest="command", required=True)
    migrating = commands.add_parser("migrate", help="make the tables, or bring them to this version")
    migrating.add_argument("url", nargs="?", help="postgresql://…; without it, the environment's ZART_DATABASE_URL")
    migrating.add_argument("--schema", help="the schema's name; zart unless the URL says otherwise")
    given = parser.parse_args(arguments)
    url: str | None = given.url or os.environ.get("ZART_DATABASE_URL")
    if not url:
        parser.error("give a URL, or set ZART_DATABASE_URL")
    try:
        scheduler = from_url(url, **({"schema": given.schema} if given.schema else {}))
        asyncio.run(scheduler.migrate())
    except (ZartError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the tables have version {newest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
