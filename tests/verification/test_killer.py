"""Who keeps the workers of a verification at work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest import mock

from tests.behaviour.programs import Place
from tests.verification.killer import Killer


async def test_two_workers_that_are_launched_at_once_write_logs_of_their_own(tmp_path: Path) -> None:
    killer = Killer(Place(tmp_path), seed=1, workers=2, weather=[])
    both = asyncio.Barrier(2)

    async def begin(*command: str, stderr: Any, **options: Any) -> mock.Mock:
        """Race: neither of them is known yet when the other one's log is made."""
        await both.wait()
        stderr.write(stderr.name.encode())
        return mock.Mock(stdout=mock.Mock(readline=mock.AsyncMock(return_value=b"ready\n")))

    with mock.patch("asyncio.create_subprocess_exec", begin):
        workers = await asyncio.gather(killer._launch(), killer._launch())
    assert len({worker.said for worker in workers}) == 2
