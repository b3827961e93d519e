from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

Lines = Callable[[Callable[[], Coroutine[Any, Any, None]]], list[str]]


@pytest.fixture
def lines_in_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Runs an example's ``main`` in this process, on SQLite in memory, and gives the lines that it prints."""
    monkeypatch.delenv("ZART_DATABASE_URL", raising=False)

    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> list[str]:
        asyncio.run(main())
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.splitlines()

    return run
