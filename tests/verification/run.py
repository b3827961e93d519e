"""A verification on a store of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE
from tests.verification.mutations import VARIABLE, mutate_server
from tests.verification.report import Report
from tests.verification.verification import verify


def run(folder: Path, url: str | None, **options: Any) -> Report:
    """On SQLite in ``folder``, on the empty database at ``url``, or on a server of its own. ``options`` are those of ``verify``."""
    if STORE == "sqlite":
        return asyncio.run(verify(Place(folder), **options))
    from tests.postgres.server import server_of_ones_own
    from zart_postgres import PostgresScheduler

    async def on_server(url: str, **more: Any) -> Report:
        await PostgresScheduler(url).migrate()
        await mutate_server(url, os.environ.get(VARIABLE))
        (folder / "url").write_text(url)
        return await verify(Place(folder), **options, **more)

    if url is not None:
        return asyncio.run(on_server(url))
    with server_of_ones_own() as (own, crash):
        return asyncio.run(on_server(own, crash=crash))
