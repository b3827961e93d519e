from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.world import Replay, World, store


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on a store, so that the suite can be run on another one without what has none."""
    for item in items:
        if {"world", "place"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("store")
