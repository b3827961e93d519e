"""Defects for the verification to find: each takes one safeguard away, in the workers, in the driver and in the server's functions.

``python -m tests.verification.mutations --store sqlite --seeds 4 --seconds 30 [NAME …]`` tells which seeds find each, and by what.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from msgspec import Struct, structs

VARIABLE: Final = "ZART_VERIFICATION_MUTATION"
"""The name of the mutation that worker processes are to have."""
PATIENCE: Final = 20.0
"""Seconds after which a program counts as stuck here: a defect that wakes nobody shall not take long."""

PACE: Final = 3.0
"""Programs a second, of a machine that has nothing else to do: on one that is busy a run lasts longer."""


class Mutation(Struct, frozen=True):
    """What is taken away: ``patches`` in Python on either store, and on the server ``functions``, each by its name, an old and a new text."""

    patches: Callable[[], list[AbstractContextManager[Any]]] = list
    on_sqlite: Callable[[], list[AbstractContextManager[Any]]] = list
    on_server: Callable[[], list[AbstractContextManager[Any]]] = list
    functions: tuple[tuple[str, str, str], ...] = ()


def replaced(module: Any, name: str, old: str, new: str) -> AbstractContextManager[Any]:
    """A statement of ``module`` with another text in one place."""
    from zart_sqlite.rows import ManyRows

    statement = getattr(module, name)
    if isinstance(statement, ManyRows):
        text = statement._statement
        assert old in text, f"{name} does not say {old!r}"
        return mock.patch.object(module, name, ManyRows(text.replace(old, new), columns=statement._row.count("?")))
    assert old in statement, f"{name} does not say {old!r}"
    return mock.patch.object(module, name, statement.replace(old, new))


def _no_fence() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import flush, scheduler

    true = flush.flush

    def unfenced(tx: Any, request: Any) -> Any:
        epochs = dict(tx.db.execute("SELECT run_id, epoch FROM zart_active").fetchall())
        for field in structs.fields(type(request)):
            if isinstance(facts := getattr(request, field.name), list):
                facts[:] = [structs.replace(fact, epoch=epochs.get(fact.run_id, fact.epoch)) for fact in facts]
        return true(tx, request)

    return [
        replaced(flush, "FENCE", "AND +worker_id = ?", "AND ? > 0"),
        replaced(flush, "LONE_STEP", "AND worker_id = ? AND epoch = ?", "AND ? AND ?"),
        mock.patch.object(scheduler, "write_facts", unfenced),
    ]


def _no_fence_on_server() -> list[AbstractContextManager[Any]]:
    from zart_postgres import completions

    found: list[AbstractContextManager[Any]] = []
    for name in (
        "COMPLETE",
        "COMPLETE_OVER",
        "COMPLETE_ONE",
        "COMPLETE_ONE_OVER",
        "COMPLETE_AND_END",
        "COMPLETE_AND_END_OVER",
    ):
        text = getattr(completions, name)
        for fact in ("s", "f") if "END" in name else ("s",):
            old = f"AND x.epoch = {fact}.epoch AND x.worker_id IS NOT DISTINCT FROM $1"
            assert old in text, f"{name} does not say {old!r}"
            text = text.replace(old, f"AND {fact}.epoch IS NOT NULL AND $1::bigint IS NOT NULL")
        found.append(mock.patch.object(completions, name, text))
    return found


def _no_wake() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import signals

    return [replaced(signals, "_WAKE", ", wake_at = min(?3, coalesce(wake_at, ?3))", ", error = iif(?3, error, error)")]


def _no_notification_of_children() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import finishes

    old = "THEN min(:now, coalesce(wake_at, :now)) ELSE wake_at END"
    return [replaced(finishes, "_COUNT_DOWN", old, "THEN wake_at ELSE wake_at END")]


def _suspends_blindly() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import flush

    return [replaced(flush, "SUSPEND", "OR signal_seq = parked.seen)", "OR true)")]


def _attempts_twice() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import flush

    conflict = "ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING"
    return [replaced(flush, "_ATTEMPTS", conflict, "")]


def _children_twice() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import children

    return [replaced(children, "_KNOWN", "FROM json_each(?) AS call", "FROM json_each(iif(?, '[]', '[]')) AS call")]


def _undo_forgotten() -> list[AbstractContextManager[Any]]:
    from zart_core.engine.sagas import Saga

    true = Saga._finished

    def finished(self: Any, undo: Any) -> None:
        if undo.row.worker_id == self.run.services.worker_id:
            true(self, undo)

    return [mock.patch.object(Saga, "_finished", finished)]


def _renews_the_dead() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import leases

    return [replaced(leases, "_RENEW", "AND expires_at IS NOT NULL", "")]


def _renews_the_dead_on_server() -> list[AbstractContextManager[Any]]:
    from zart_postgres import leases

    return [replaced(leases, "HEARTBEAT", "AND expires_at IS NOT NULL", "")]


def _never_lapses() -> list[AbstractContextManager[Any]]:
    from zart_core.engine.lease import Lease

    return [mock.patch.object(Lease, "lapsed", property(lambda self: False))]


def _dead_keep_theirs() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import leases

    return [replaced(leases, "_FREE", "worker_id IN (SELECT", "worker_id + 1 IN (SELECT")]


def _answers_too_soon() -> list[AbstractContextManager[Any]]:
    from zart_core.engine import journal
    from zart_core.records import Flushed

    async def persist(self: Any, facts: Any) -> Any:
        try:
            return await self._scheduler.flush(facts)
        except journal.BackendUnavailable:
            return Flushed()

    return [mock.patch.object(journal.Journal, "_persist", persist)]


def _unannounced() -> list[AbstractContextManager[Any]]:
    from zart_core.engine.steps import Attempts

    true = Attempts._announce

    async def announce(self: Any) -> None:
        if not self.options.at_most_once:
            await true(self)

    return [mock.patch.object(Attempts, "_announce", announce)]


def _details_forgotten() -> list[AbstractContextManager[Any]]:
    from zart_core.engine.steps import Attempts

    true = Attempts._row

    def row(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("wake_at") is not None:
            self.details = None
        return true(self, *args, **options)

    return [mock.patch.object(Attempts, "_row", row)]


def _patches_unstored() -> list[AbstractContextManager[Any]]:
    from zart_core import task_context

    def patched(run: Any, site: Any, marker: str) -> bool:
        run.meet(marker, run.own(0), "patch", site)
        return not run.replay.ahead(compensating=run.compensating)

    return [mock.patch.object(task_context, "patched", patched)]


def _pauses_unheard() -> list[AbstractContextManager[Any]]:
    from zart_core.engine.tenure import Tenure

    return [mock.patch.object(Tenure, "_heed", return_value=None)]


def _no_limits() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import limits

    return [mock.patch.object(limits, "defined", return_value=set())]


def _purges_uncounted() -> list[AbstractContextManager[Any]]:
    from zart_sqlite import purges

    return [mock.patch.object(purges, "uncount", return_value=None)]


def _no_deadline() -> list[AbstractContextManager[Any]]:
    from zart_core.engine.deadline import Deadline

    return [mock.patch.object(Deadline, "arm", return_value=None)]


def _keeps_nothing() -> list[AbstractContextManager[Any]]:
    from zart_core import operations

    def matched(history: Any, patterns: Any) -> frozenset[Any]:
        return frozenset((row.name, row.ordinal) for row in history.steps)

    return [mock.patch.object(operations, "_matched", matched)]


MUTATIONS: Final[dict[str, Mutation]] = {
    "a flush without its fence": Mutation(
        on_sqlite=_no_fence,
        on_server=_no_fence_on_server,
        functions=(
            ("lock_v1", "n.run_id = l.run_id AND n.epoch = l.epoch AND l.worker_id = p_worker", "n.run_id = l.run_id"),
        ),
    ),
    "an event that wakes nobody": Mutation(
        on_sqlite=_no_wake,
        functions=(("offer_v1", "WHEN o_ready THEN least(o_now, a.wake_at)", "WHEN o_ready THEN a.wake_at"),),
    ),
    "a child's end that wakes nobody": Mutation(
        on_sqlite=_no_notification_of_children,
        functions=(
            ("end_runs_v1", "THEN least(p_now, a.wake_at) ELSE a.wake_at END", "THEN a.wake_at ELSE a.wake_at END"),
        ),
    ),
    "a suspension that overlooks an event": Mutation(
        on_sqlite=_suspends_blindly,
        functions=(
            ("flush_v1", "OR a.signal_seq = u.seen)", "OR true)"),
            ("hold_v1", "OR a.signal_seq = u.seen)", "OR true)"),
        ),
    ),
    "attempts without their ON CONFLICT": Mutation(
        on_sqlite=_attempts_twice,
        functions=(("flush_v1", "ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING", ""),),
    ),
    "a call that starts its child again": Mutation(
        on_sqlite=_children_twice,
        functions=(("start_children_v1", "WHERE s.known IS NULL AND ", "WHERE "),),
    ),
    "an undo that a replay forgets": Mutation(patches=_undo_forgotten),
    "a lease that is renewed without a check": Mutation(
        on_sqlite=_renews_the_dead,
        on_server=_renews_the_dead_on_server,
        functions=(("claim_v1", "w.worker_id = p_worker AND w.expires_at IS NOT NULL", "w.worker_id = p_worker"),),
    ),
    "a worker that does not mind its lapsed lease": Mutation(patches=_never_lapses),
    "a dead worker whose runs stay with it": Mutation(
        on_sqlite=_dead_keep_theirs,
        functions=(("free_dead_v1", "WHERE NOT w.emptied AND w.expires_at IS NULL", "WHERE false"),),
    ),
    "a failed flush that is taken for done": Mutation(patches=_answers_too_soon),
    "a step at most once that is not announced": Mutation(patches=_unannounced),
    "details of heartbeats that a failure forgets": Mutation(patches=_details_forgotten),
    "a patch that is not stored": Mutation(patches=_patches_unstored),
    "a pause that runs at work do not hear of": Mutation(patches=_pauses_unheard),
    "a queue whose limits nobody looks at": Mutation(
        on_sqlite=_no_limits,
        functions=(
            ("claim_v1", 'IF EXISTS (SELECT 1 FROM "zart".queues', 'IF false AND EXISTS (SELECT 1 FROM "zart".queues'),
        ),
    ),
    "a purge that is not counted": Mutation(
        on_sqlite=_purges_uncounted, functions=(("purge_v1", "-count(*)", "0 * count(*)"),)
    ),
    "a deadline that wakes nobody": Mutation(patches=_no_deadline),
    "a rerun that keeps nothing": Mutation(patches=_keeps_nothing),
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """This process with a mutation; without one where there is no name."""
    from tests.behaviour.world import STORE

    with contextlib.ExitStack() as stack:
        if name is not None:
            mutation = MUTATIONS[name]
            for patches in (mutation.patches, mutation.on_sqlite if STORE == "sqlite" else mutation.on_server):
                for patch in patches():
                    stack.enter_context(patch)
        yield


async def mutate_server(url: str, name: str | None) -> None:
    """The same for the functions of a server."""
    from tests.postgres.server import connection_to

    if name is not None:
        async with connection_to(url) as connection:
            for text in await mutants(connection, name):
                await connection.execute(text)


async def mutants(connection: Any, name: str) -> list[str]:
    """What defines the functions anew that this mutation changes."""
    found: list[str] = []
    for function, old, new in MUTATIONS[name].functions:
        text = await connection.fetchval(
            "SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace "
            "WHERE n.nspname = 'zart' AND p.proname = $1",
            function,
        )
        assert old in text, f"{function} does not say {old!r}"
        found.append(text.replace(old, new))
    return found


def search(name: str, seed: int, seconds: float) -> tuple[bool, str]:
    """Whether a verification of this seed finds the mutation, and what it says first."""
    from tests.verification.run import run

    folder = Path(tempfile.mkdtemp(prefix="zart-mutation-"))
    os.environ[VARIABLE] = name
    try:
        with mutated(name):
            report = run(folder, None, seed=seed, seconds=seconds, patience=PATIENCE, at_least=round(seconds * PACE))
    except Exception as error:  # on a busy machine a worker may not start in time: that finds nothing
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        traceback.print_exception(error)
        return False, f"broken off by {type(error).__name__}: {error}"[:200]
    finally:
        del os.environ[VARIABLE]
    said = report.stuck or (f"{report.findings[0].kind}: {report.findings[0].text}" if report.findings else "nothing")
    return not report.well, f"{report.programs} programs, {len(report.findings)} findings, {said[:200]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.verification.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="by default all; a part of a name is enough")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--enough", type=int, default=None, help="so many seeds that find a mutation; by default all are tried"
    )
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long programs are started")
    given = parser.parse_args()
    os.environ["ZART_TEST_STORE"] = given.store
    chosen = [name for name in MUTATIONS if not given.names or any(part in name for part in given.names)]
    for name in chosen:
        found = tried = 0
        for seed in range(given.first, given.first + given.seeds):
            if found == given.enough:
                break
            began = time.monotonic()
            is_found, said = search(name, seed, given.seconds)
            tried, found = tried + 1, found + is_found
            print(f"  seed {seed}, {time.monotonic() - began:.0f} s: {said}", flush=True)
        print(f"{given.store}, {name}: {found} of {tried}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
