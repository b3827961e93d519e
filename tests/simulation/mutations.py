"""Defects for the simulation to find: each takes one safeguard away.

``python -m tests.simulation.mutations [NAME …]`` tells the first seed that finds each.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from msgspec import structs

from tests.simulation.simulation import Simulation
from tests.simulation.weather import Weather
from zart_core.engine import claims as engine_claims
from zart_core.engine import journal as engine_journal
from zart_core.engine import steps
from zart_core.engine.ending import Ending
from zart_core.records import Flush, Flushed
from zart_sqlite import (
    claims,
    finishes,
    flush,
    keyed,
    leases,
    limits,
    pauses,
    purges,
    recurrences,
    signals,
    succession,
    transactions,
)
from zart_sqlite.rows import ManyRows

FOUL = Weather(faults=0.02, breaks=0.01, deaths=0.005, freezes=True, drains=True, pauses=False, notifications=True)
STORMY = Weather(faults=0.1, breaks=0.02, notifications=False)
BUSY = Weather(faults=0.02, deaths=0.005, operators=True)
DEADLY = Weather(faults=0.02, deaths=0.02)
STRICT = Weather(faults=0.02, cancels=True, notifications=False)
HELD = Weather(faults=0.02, pauses=True)
TIDY = Weather(faults=0.02, operators=True, purges=True)
CUT_OFF = Weather(faults=0.02, breaks=0.02, freezes=True, pauses=True, notifications=False)
NEW = Weather(faults=0.02, deploys=True)
LIMITED = Weather(faults=0.02, deaths=0.005, limits=True)
KEYED = Weather(faults=0.02, keys=True)
TICKING = Weather(faults=0.02, deaths=0.005, recurs=True)


def replaced(module: Any, name: str, old: str, new: str) -> Any:
    """A statement of ``module`` with another text in one place."""
    statement = getattr(module, name)
    if isinstance(statement, ManyRows):
        text = statement._statement
        assert old in text, f"{name} does not say {old!r}"
        return mock.patch.object(module, name, ManyRows(text.replace(old, new), columns=statement._row.count("?")))
    assert old in statement, f"{name} does not say {old!r}"
    return mock.patch.object(module, name, statement.replace(old, new))


@contextmanager
def no_fence() -> Iterator[None]:
    """Flushes are fenced by nothing: whoever held the run once may write."""
    true = flush.flush

    def unfenced(tx: Any, request: Flush) -> Any:
        epochs = dict(tx.db.execute("SELECT run_id, epoch FROM zart_active").fetchall())
        for fields in structs.fields(Flush):
            if isinstance(facts := getattr(request, fields.name), list):
                facts[:] = [structs.replace(fact, epoch=epochs.get(fact.run_id, fact.epoch)) for fact in facts]
        return true(tx, request)

    with (
        replaced(flush, "FENCE", "AND +worker_id = ?", "AND ? > 0"),
        mock.patch("tests.simulation.store.write_facts", unfenced),
    ):
        yield


@contextmanager
def result_before_effect() -> Iterator[None]:
    """A step's result is durable before its body has begun, where that is a plain one."""
    true = steps.Attempts.finish

    async def finish(self: Any) -> Any:
        if self.row is None and self.options is steps.PLAIN and self.args and isinstance(self.args[0], str):
            finished = await self._completed(self.args[0], self.first_started)
            await self._attempt(0, None)
            return finished
        return await true(self)

    with mock.patch.object(steps.Attempts, "finish", finish):
        yield


@contextmanager
def no_doubt() -> Iterator[None]:
    """A claim whose answer was lost is forgotten: nobody gives back what it has leased."""
    true = engine_claims.Claims._claim

    async def claim(self: Any) -> bool:
        self._unsure = False
        return await true(self)

    with mock.patch.object(engine_claims.Claims, "_claim", claim):
        yield


@contextmanager
def answers_too_soon() -> Iterator[None]:
    """A flush that fails is taken for done."""

    async def persist(self: Any, facts: Any) -> Any:
        try:
            return await self._scheduler.flush(facts)
        except engine_journal.BackendUnavailable:
            return Flushed()

    with mock.patch.object(engine_journal.Journal, "_persist", persist):
        yield


def hasty_deadlines() -> Any:
    def reached(run: Ending) -> None:
        run.deadline.disarm()
        run.deadline_passed()

    return mock.patch.object(Ending, "_deadline_reached", reached)


@contextmanager
def no_announcement() -> Iterator[None]:
    """A step that may run once is not on record when it begins."""
    true = steps.Attempts._announce

    async def announce(self: Any) -> None:
        if not self.options.at_most_once:
            await true(self)

    with mock.patch.object(steps.Attempts, "_announce", announce):
        yield


@contextmanager
def purge_of_the_young() -> Iterator[None]:
    """A purge takes what has ended a moment ago."""
    with (
        replaced(purges, "NEXT", "AND finished_at <= ?", "AND finished_at <= ? + 9900000"),
        replaced(purges, "GOING", "l.finished_at <= :until", "l.finished_at <= :until + 9900000"),
    ):
        yield


MUTATIONS: dict[str, tuple[Callable[[], Any], Weather]] = {
    "a flush without its fence": (no_fence, FOUL),
    "a result before its effect": (result_before_effect, FOUL),
    "a lone step without the epoch": (
        lambda: replaced(flush, "LONE_STEP", "AND worker_id = ? AND epoch = ?", "AND ? AND ?"),
        FOUL,
    ),
    "a transaction without the fence": (
        lambda: replaced(transactions, "_HELD", "AND worker_id = ? AND epoch = ?", "AND ? AND ?"),
        FOUL,
    ),
    "attempts without their ON CONFLICT": (
        lambda: replaced(
            flush, "_ATTEMPTS", "ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING", ""
        ),
        STORMY,
    ),
    "an event that wakes nobody": (
        lambda: replaced(
            signals, "_WAKE", ", wake_at = min(?3, coalesce(wake_at, ?3))", ", error = iif(?3, error, error)"
        ),
        FOUL,
    ),
    "a child's end that wakes nobody": (
        lambda: replaced(
            finishes,
            "_COUNT_DOWN",
            "THEN min(:now, coalesce(wake_at, :now)) ELSE wake_at END",
            "THEN wake_at ELSE wake_at END",
        ),
        FOUL,
    ),
    "a suspension that overlooks an event": (
        lambda: replaced(flush, "SUSPEND", "OR signal_seq = parked.seen)", "OR true)"),
        STORMY,
    ),
    "a suspension that overlooks a child's end": (
        lambda: replaced(flush, "SUSPEND", "OR open_children > parked.children_left)", "OR true)"),
        STORMY,
    ),
    "a suspension that forgets its timer": (
        lambda: replaced(
            flush, "SUSPEND", "min(coalesce(parked.wake_at, deadline), coalesce(deadline, parked.wake_at))", "deadline"
        ),
        Weather(),
    ),
    "a lane that lets nobody in": (lambda: replaced(finishes, "_RELEASE", "LIMIT ?4", "LIMIT ?4 * 0"), Weather()),
    "a dead worker whose runs stay with it": (
        lambda: replaced(leases, "_FREE", "worker_id IN (SELECT", "worker_id + 1 IN (SELECT"),
        FOUL,
    ),
    "a claim whose answer was lost": (no_doubt, STORMY),
    "a failed flush that is taken for done": (answers_too_soon, STORMY),
    # Operators.
    "a restart that ends the call of its parent": (
        lambda: replaced(succession, "_UNLINK", "WHERE run_id = ?", "WHERE run_id = -?"),
        BUSY,
    ),
    "a restart whose parent is lost": (
        lambda: replaced(succession, "_INSERT_ACTIVE", ":parent_run, :parent_name", "NULL * :parent_run, :parent_name"),
        BUSY,
    ),
    "a restart that forgets what was not read": (
        lambda: replaced(succession, "_TAKE_EVENTS", "OR :unread AND", "OR 0 * :unread AND"),
        BUSY,
    ),
    "a run that begins beside the one before": (
        lambda: mock.patch.object(succession, "finish", return_value=None),
        BUSY,
    ),
    "a retried step whose failure stays": (
        lambda: replaced(succession, "_DROP", "WHERE rowid IN", "WHERE rowid < 0 AND rowid IN"),
        BUSY,
    ),
    "a cancellation that a completion overtakes": (
        lambda: replaced(flush, "FENCE", "cancel_requested, attempt", "0, attempt"),
        STRICT,
    ),
    "a claim that overlooks pauses": (
        lambda: mock.patch.object(claims, "not_paused", lambda offers, held: tuple(offers)),
        HELD,
    ),
    "a pause that never lets go": (
        lambda: replaced(pauses, "RELEASE", "IS NULL, held.queue, zart", "IS NULL, zart_active.queue, zart"),
        HELD,
    ),
    "a purge of the young": (purge_of_the_young, TIDY),
    "a purge that leaves steps behind": (lambda: mock.patch.object(purges, "_DELETE", purges._DELETE[1:]), TIDY),
    # Time.
    "a first claim that fixes no deadline": (
        lambda: replaced(claims, "_LEASE", "coalesce(deadline, min(wake_at + taken.timeout, :forever))", "deadline"),
        Weather(faults=0.02),
    ),
    "a suspension that forgets the deadline": (
        lambda: replaced(
            flush,
            "SUSPEND",
            "min(coalesce(parked.wake_at, deadline), coalesce(deadline, parked.wake_at))",
            "parked.wake_at",
        ),
        Weather(faults=0.02),
    ),
    # Steps.
    "a step that may run once, and is not announced": (no_announcement, DEADLY),
    "a sign of life that is not stored": (
        lambda: replaced(flush, "_DETAILS", "SET details = excluded.details", "SET details = zart_steps.details"),
        Weather(),
    ),
    "a sign of life that nobody is told": (
        lambda: mock.patch.object(steps.Attempts, "_previous_details", return_value=None),
        Weather(),
    ),
    "a deadline that a worker calls over by itself": (hasty_deadlines, CUT_OFF),
    "a patch that is always new": (
        lambda: mock.patch("zart_core.task_context.patched", return_value=True),
        NEW,
    ),
    # Queues, keys, the clock.
    "a queue with a place too many": (
        lambda: replaced(limits, "_LIMITS", "SELECT count(*) FROM", "SELECT count(*) - 1 FROM"),
        LIMITED,
    ),
    "a key with a place too many": (
        lambda: replaced(limits, "WALK", "max(0, :per_key - (", "max(0, 1 + :per_key - ("),
        LIMITED,
    ),
    "a rate that forgets too soon": (
        lambda: replaced(limits, "_FORGET_STARTS", "at <= ?", "at <= ? + 1000000"),
        LIMITED,
    ),
    "a place that is given back too soon": (
        lambda: replaced(claims, "_LEASE", "place = taken.place", "place = CASE epoch WHEN 0 THEN taken.place END"),
        LIMITED,
    ),
    "an only one that waits and is overlooked": (
        lambda: replaced(keyed, "_LATEST", "a.run_id IS NOT NULL", "a.worker_id IS NOT NULL"),
        KEYED,
    ),
    "a start that joins what has begun": (
        lambda: replaced(keyed, "_PUT_OFF", "AND epoch = 0 AND worker_id IS NULL", ""),
        KEYED,
    ),
    "a tick that two workers start": (
        lambda: replaced(recurrences, "_SEEN", "AND revision = ?", "AND revision >= ?"),
        TICKING,
    ),
    "a tick that is not counted": (
        lambda: replaced(recurrences, "_MOVE", "skipped = skipped + :skipped", "skipped = skipped + 0 * :skipped"),
        TICKING,
    ),
}


def search(name: str, seeds: range) -> tuple[int, list[str]] | None:
    """The first seed that finds a mutation, and what it says."""
    mutate, weather = MUTATIONS[name]
    with mutate():
        for seed in seeds:
            result = Simulation(seed, weather).run()
            if result.findings:
                return seed, result.findings
    return None


def main(names: list[str]) -> None:
    for name in names or list(MUTATIONS):
        found = search(name, range(300))
        print(f"{name}: {'not found' if found is None else f'seed {found[0]}: {found[1][0][:160]}'}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1:])
