"""Who keeps the workers of a verification at work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest import mock

from tests.behaviour.programs import Place
from tests.verification.killer import Killer
from tests.verification.stage import Stage


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


def test_a_body_that_another_process_has_begun_since_is_under_way_there_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    stage = Stage(ledger)
    ledger.write_text("begin p1 0.0 0 7\nbegin p2 0.0 0 7\nbegin p1 0.0 0 8\n")
    stage.look()
    assert stage.bodies(7) == {("p2", "0.0")}
    assert stage.bodies(8) == {("p1", "0.0")}
    assert not stage.taken(stage.bodies(7), 7)
    with ledger.open("a") as file:
        file.write("lost 7\n")
    stage.look()
    assert stage.bodies(7) == set()
    assert stage.bodies(8) == {("p1", "0.0")}
