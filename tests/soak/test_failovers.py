"""A short series of failovers of each kind, and that one which loses something is found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import pytest

from tests.postgres.replication import Replication, replication
from tests.soak import failovers
from tests.soak.failovers import Series, Told
from tests.soak.records import Finding
from tests.soak.rounds import Play


def silent(said: str) -> None: ...


@pytest.mark.parametrize("play", [failovers.synchronous, failovers.asynchronous])
def test_failovers_in_a_row_do_no_harm(tmp_path: Path, play: Play) -> None:  # B9, B58, B61
    round_ = play(tmp_path, 1, 2.0, silent)
    assert round_.findings == []
    assert round_.done["failovers"] >= 1
    assert round_.done["acknowledged writes"] > 60


async def test_a_standby_that_lacks_what_was_acknowledged_is_found() -> None:
    async with replication() as pair:

        async def cut_off(self: Replication) -> None:
            await true(self)
            await series._acknowledged(20)

        # Commits do not wait for the standby, and just before the primary dies it has fallen behind.
        true = Replication.cut_off
        series = Series(pair, seed=1, synchronous=True, beat=silent)
        with (
            mock.patch.object(Replication, "synchronous", mock.AsyncMock()),
            mock.patch.object(Replication, "kill", before(cut_off, Replication.kill)),
        ):
            await series.play(0.1)
    kinds = Counter(finding.kind for finding in series.findings)
    assert kinds["lost"] >= 20, series.findings


Act = Callable[[Replication], Awaitable[None]]


def before(first: Act, then: Act) -> Act:
    async def both(self: Replication) -> None:
        await first(self)
        await then(self)

    return both


def test_a_body_that_runs_again_is_explained_by_a_failover_once() -> None:
    told = Told()
    told.begin("e1", "a")
    told.era += 1
    told.begin("e1", "a")
    assert (told.explained, told.unexplained) == (1, [])
    told.begin("e1", "a")
    assert (told.explained, told.unexplained) == (1, [("e1", "a")])


async def test_what_the_new_primary_had_and_what_was_seen_is_not_done_again() -> None:
    series = Series(mock.Mock(), seed=1, synchronous=False, beat=silent)
    series.ledger.begin("e1", "a")
    series.ledger.seen["e1"].add("a")
    series.ledger.begin("e2", "a")
    series._note_kept({"e2": {"a"}})
    series.ledger.era += 1
    for name in ("e1", "e2"):
        series.ledger.begin(name, "a")
    await series._judge(mock.Mock())
    assert series.findings == [
        Finding("doubled", "('e1', 'a') ran after its result had been seen"),
        Finding("doubled", "('e2', 'a') ran again though the new primary had its result"),
    ]
