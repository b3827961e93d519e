"""The same on a server, where time is real and a death costs a short lease."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.crashes.scenarios import SCENARIOS, Steps
from tests.postgres import server
from zart_core.testing import SweepReport, crash_sweep


class QuickSteps(Steps):
    pause = "20ms"


async def sweep_on_a_server(name: str, **options: Any) -> SweepReport:
    scenario = SCENARIOS[name]
    if name == "steps":
        scenario = {**scenario, "handler": QuickSteps}
    async with server.database(server.NEWEST) as url:
        passed = (await crash_sweep(**scenario, windows=(), url=url)).windows
    async with server.database(server.NEWEST) as url:
        chosen = options.pop("choose", lambda windows: windows)(passed)
        return await crash_sweep(**scenario, windows=chosen, lease="150ms", url=url, **options)


@pytest.mark.parametrize("name", ["steps", "family"])
async def test_a_death_in_some_windows_goes_unnoticed_on_a_server(name: str) -> None:  # B9 B10 B56
    report = await sweep_on_a_server(name, choose=lambda windows: random.Random(0).sample(windows, 10))
    assert report.deaths >= 6


@pytest.mark.soak
@pytest.mark.parametrize("name", ["steps", "family"])
async def test_a_death_in_any_window_goes_unnoticed_on_a_server(name: str) -> None:  # B9 B10 B56
    await sweep_on_a_server(name)
