"""The world of one behaviour test: a store, clients, workers, and a ledger outside of the database."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.sqlite.template import make_file
from zart_core import (
    DurableScheduler,
    ExecutionHandle,
    Scheduler,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    connect,
)

REPLAY = os.environ.get("ZART_TEST_REPLAY", "cached")
"""``always`` runs the whole suite with an engine that suspends and replays at every durable call."""

Replay = Literal["cached", "always"]
"""What a ``TestEngine`` is made with; the fixture ``replay`` has a test run with both."""

STORE = os.environ.get("ZART_TEST_STORE", "sqlite")
"""``sqlite``, ``postgres`` (the newest server at hand) or ``postgres16``: where the suite keeps its executions."""


@contextmanager
def store(folder: Path) -> Iterator[None]:
    """A fresh store for what happens in ``folder``, in this process and others."""
    if STORE == "sqlite":
        yield
        return
    # Imported here: the suite on SQLite needs no server and none of its packages.
    from tests.postgres import server

    version = int(STORE.removeprefix("postgres") or server.NEWEST)
    with asyncio.Runner() as runner:
        database = server.database(version)
        (folder / "url").write_text(runner.run(database.__aenter__()))
        try:
            yield
        finally:
            runner.run(database.__aexit__(None, None, None))


def url_of(folder: Path) -> str:
    """The URL of the store for what happens in ``folder``."""
    return f"sqlite:///{folder}/zart.db" if STORE == "sqlite" else (folder / "url").read_text()


def registry_of(*handlers: TaskHandler[Any, Any]) -> TaskRegistry:
    """A registry with these handlers."""
    registry = TaskRegistry()
    for handler in handlers:
        registry.register(handler)
    return registry


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll ``condition`` until it holds."""
    try:
        async with asyncio.timeout(20):
            while not await condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"this never came true: {what}") from None


class Ledger:
    """Counts effects in a file, whoever makes them: any process, any life of a worker."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: str) -> None:
        """Append one line in one write, so that processes do not mix."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{entry}\n".encode())
        finally:
            os.close(descriptor)

    def entries(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def count(self, entry: str) -> int:
        return Counter(self.entries())[entry]


class World:
    """Entered around the test; checks the tables at its end (B79)."""

    enter_around_test = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if STORE == "sqlite":
            make_file(folder / "zart.db")
        self.url = url_of(folder)
        self.ledger = Ledger(folder / "ledger")
        self.registry = TaskRegistry()
        self.scheduler: Scheduler = connect(self.url)
        self.client = DurableScheduler(self.scheduler)

    def register(self, *handlers: TaskHandler[Any, Any]) -> None:
        for handler in handlers:
            self.registry.register(handler)

    def another(self) -> Scheduler:
        """Another scheduler object on the same store, as another process would have it; not open yet."""
        return connect(self.url)

    @asynccontextmanager
    async def worker(
        self, *, scheduler: Scheduler | None = None, registry: TaskRegistry | None = None, **config: Any
    ) -> AsyncIterator[Worker]:
        """A worker with short times, so that tests are quick; ``config`` are fields of ``WorkerConfig``."""
        options = {"linger": "50ms", "poll_interval": "200ms", "drain_timeout": "5s", "replay": REPLAY, **config}
        async with Worker(scheduler or self.scheduler, registry or self.registry, WorkerConfig(**options)) as worker:
            yield worker

    async def run(self, task: Any, data: Any = None, **options: Any) -> Any:
        """Start one execution with a worker of its own and wait for its output."""
        async with self.worker():
            handle: ExecutionHandle[Any] = await self.client.start(task, data, **options)
            return await handle.result("30s")

    async def audit(self) -> list[str]:
        if STORE != "sqlite":
            from tests.postgres.keeper import audit_of

            return await audit_of(self.url)
        audit = getattr(self.scheduler, "audit")  # noqa: B009 - not part of the contract
        return list(await audit())

    async def __aenter__(self) -> World:
        await self.scheduler.open()
        return self

    async def __aexit__(self, kind: object, *exc: object) -> None:
        try:
            findings = [] if kind is not None else await self.audit()
        finally:
            await self.scheduler.close()
        assert not findings, "the audit of the tables found:\n" + "\n".join(findings)
