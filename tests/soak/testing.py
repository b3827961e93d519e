"""A plugin of pytest that makes a run of tests a part of a soak: each test is a round.

The order is drawn from the seed, so that those for which there is no time are others each time; none is begun when the time is over.
"""

from __future__ import annotations

import os
import random
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from tests.soak.journal import Journal
from tests.soak.pulse import Pulse
from tests.soak.records import FAILED, Begin, Finding, Round

_LIMIT = 600.0
"""Seconds after which a test is stuck that its own limit has not ended."""


class Ration:
    """See the module."""

    def __init__(self, journal: Path, seed: int, until: float) -> None:
        self._journal = Journal(journal)
        self._pulse = Pulse(self._journal)
        self._seed = seed
        self._until = until
        self._left = 0
        self._began = 0.0
        self._found: list[Finding] = []
        self._skipped = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        random.Random(self._seed).shuffle(items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._left = len(session.items)
        if time.time() > self._until:
            session.items.clear()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began, self._found, self._skipped = time.monotonic(), [], False
        self._journal.begin(Begin(nodeid, self._seed, 0.0, self._replay(nodeid), limit=_LIMIT, can_be_cut=True))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._skipped |= report.skipped
        if report.failed:
            self._found.append(Finding(FAILED, f"{report.nodeid} ({report.when}):\n{report.longreprtext[-3_000:]}"))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._left -= 1
        self._journal.end(
            Round(
                name=nodeid,
                seed=self._seed,
                took=time.monotonic() - self._began,
                replay=self._replay(nodeid),
                done={"tests skipped" if self._skipped else "tests": 1},
                findings=self._found,
            )
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        done = yield
        self._stop_in_time(item.session)
        return done

    def _stop_in_time(self, session: pytest.Session) -> None:
        if self._left and time.time() > self._until:
            session.shouldstop = "the time is over"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._left:
            self._journal.end(Round(name="", seed=self._seed, took=0.0, replay="", done={"tests not run": self._left}))
        if self._left and (session.shouldstop or not session.items):
            # Neither to stop in time nor to have begun none is a failure.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if session.testsfailed else pytest.ExitCode.OK

    def _replay(self, nodeid: str) -> str:
        names = ("ZART_TEST_EXAMPLES", "ZART_TEST_STORE", "ZART_SOAK_BASE")
        given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
        return " ".join(
            [*given, f"python -m pytest -m '' --timeout=600 --hypothesis-seed={self._seed} {shlex.quote(nodeid)}"]
        )


def pytest_configure(config: pytest.Config) -> None:
    seed = int(os.environ["ZART_SOAK_SEED"])
    config.pluginmanager.register(
        Ration(Path(os.environ["ZART_SOAK_JOURNAL"]), seed, float(os.environ["ZART_SOAK_UNTIL"]))
    )
