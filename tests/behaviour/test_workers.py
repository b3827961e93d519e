"""Workers, leases, faults of the store, and several processes on one file: B55 to B62, B75, B77 to B79."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.programs import (
    Counted,
    Gated,
    Napping,
    Place,
    Process,
    Waiting,
    launch,
    registry,
    until,
    worker_process,
)
from tests.behaviour.world import REPLAY, World
from zart_core import (
    BackendUnavailable,
    DurableScheduler,
    ExecutionCancelled,
    ExecutionFailure,
    ExecutionHandle,
    SchemaOutdated,
    StartRequest,
    StepFailed,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    connect,
    context,
)
from zart_core.testing.faults import FaultPlan, FaultyScheduler, NotificationFaults, delay, fail, hang

LEASE = 1.0
"""Seconds of the leases that are to run out in these tests."""
SLACK = 2.0
"""What a busy machine may add to a takeover."""


@pytest.fixture
def place(world: World) -> Place:
    """What worker processes and the test share; the world's own workers know the same tasks."""
    for task in ("counted", "gated", "stuck", "waiting", "napping", "mixed"):
        world.registry.register(_handler(registry(Place(world.folder)), task))
    return Place(world.folder)


def _handler(tasks: TaskRegistry, name: str) -> TaskHandler[Any, Any]:
    return next(task for task in HANDLERS(tasks) if task.name == name)


# placeholder
