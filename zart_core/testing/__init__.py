"""The testing kit: the real engine on in-memory SQLite with a clock that only the test moves.

::

    async with TestEngine(registry, replay="always") as engine:
        handle = await engine.start(Checkout, order)
        await engine.run_until_waiting(handle)
        await engine.advance("24h")
        assert await handle.result() == ...
"""

from zart_core.testing.clock import VirtualClock
from zart_core.testing.engine import TestEngine
from zart_core.testing.histories import Replayed, replay_check
from zart_core.testing.sweep import Outcome, SweepReport, crash_sweep

__all__ = ["Outcome", "Replayed", "SweepReport", "TestEngine", "VirtualClock", "crash_sweep", "replay_check"]
