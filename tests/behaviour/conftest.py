from __future__ import annotations

from pathlib import Path

import pytest

from tests.behaviour.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh store with clients and workers."""
    return World(tmp_path)
