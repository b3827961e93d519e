from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.programs import Place
from tests.behaviour.world import store


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A fresh store, with the ledger and the gates that worker processes share with the test."""
    with store(tmp_path):
        yield Place(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it holds on every store."""
    here = Path(__file__).parent
    for item in items:  # those of other folders, too
        if here in item.path.parents and {"place", "tmp_path"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("store")
