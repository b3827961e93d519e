from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.world import Replay, World, store
from zart_core.engine.tenure import Tenure
from zart_core.engine.wakeups import WakeUps


@pytest.fixture(params=["cached", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    """Both ways in which a ``TestEngine`` replays: a test that asks for it runs twice."""
    value: Replay = request.param
    return value


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh store with clients and workers."""
    with store(tmp_path):
        yield World(tmp_path)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until this is set workers are told nothing and hear of no pause, as if they were cut off from the store."""
    hears = asyncio.Event()
    heed, notified = Tenure._heed, WakeUps.notified
    monkeypatch.setattr(Tenure, "_heed", lambda self, rules: heed(self, rules if hears.is_set() else ()))
    monkeypatch.setattr(WakeUps, "notified", lambda self, told: notified(self, told) if hears.is_set() else None)
    return hears


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on a store, so that the suite can be run on another one without what has none."""
    for item in items:
        if {"world", "place"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("store")
