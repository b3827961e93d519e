"""The worker's process as the demo's parent sees it: started, watched, killed, stopped."""

import asyncio
import os
import sys
from asyncio.subprocess import Process
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_TIMEOUT = 30.0
PROJECT = Path(__file__).resolve().parents[2]


class WorkerProcess:
    """``async with WorkerProcess(...)``: the process runs inside the block and is gone after it, whatever happens."""

    def __init__(self, database: str, queue: str, ledger: Path) -> None:
        self._arguments = ("-m", "examples.demo.worker", "--queue", queue, "--ledger", str(ledger))
        self._environment = {**os.environ, "ZART_DATABASE_URL": database}
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, cwd=PROJECT, env=self._environment
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.returncode is None:
            await self.kill()

    @property
    def process(self) -> Process:
        if self._process is None:
            raise RuntimeError("the worker process has not been started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """``None`` while it runs."""
        return self.process.returncode

    async def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed, nothing is released."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM: the worker drains and ends. Its exit code."""
        self.process.terminate()
        async with asyncio.timeout(STOP_TIMEOUT):
            return await self.process.wait()
