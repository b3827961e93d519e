"""The verdict: whether all has come as it was told, from the programs alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from tests.simulation.clients import EVERY
from tests.simulation.interpreter import STUMBLES, TIMEOUT
from tests.simulation.programs import Case, Plan, predict
from zart_core import DurableScheduler, Execution

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

_TABLES = (
    "runs",
    "active",
    "results",
    "steps",
    "attempts",
    "events",
    "published",
    "keyed_starts",
)
_SLEEPS = """
    SELECT r.execution_id, r.run, s.name, s.wake_at FROM zart_steps AS s JOIN zart_runs AS r ON r.run_id = s.run_id WHERE s.kind = 'sleep'
"""
# Events that a run has left unread are there for the next one.
_FORGOTTEN = """
    SELECT r.execution_id, r.run, v.name, v.seq
    FROM zart_events AS v JOIN zart_runs AS r ON r.run_id = v.run_id
    JOIN zart_runs AS n ON n.execution_id = r.execution_id AND n.run = r.run + 1
    WHERE v.seq NOT IN (SELECT s.event_seq FROM zart_steps AS s WHERE s.run_id = r.run_id AND s.kind = 'event' AND s.event_seq IS NOT NULL)
      AND NOT EXISTS (
          SELECT 1 FROM zart_events AS w WHERE w.run_id = n.run_id AND w.seq = v.seq AND w.payload = v.payload AND w.name = v.name)
"""
# And what it has read is gone for a run that begins from nothing. (What is offered once more after a restart is another event.)
_READ_TWICE = """
    SELECT r.execution_id, n.run, v.name, v.seq
    FROM zart_events AS v JOIN zart_runs AS r ON r.run_id = v.run_id
    JOIN zart_runs AS n ON n.execution_id = r.execution_id AND n.run = r.run + 1 AND n.trigger IN ('restart', 'continue')
    JOIN zart_events AS w ON w.run_id = n.run_id AND w.seq = v.seq AND w.event_id IS v.event_id
    WHERE v.seq IN (SELECT s.event_seq FROM zart_steps AS s WHERE s.run_id = r.run_id AND s.kind = 'event' AND s.event_seq IS NOT NULL)
"""
_TWO_WAYS = """
    SELECT r.execution_id, r.run, a.name FROM zart_steps AS a JOIN zart_steps AS b
        ON b.run_id = a.run_id AND b.name = substr(a.name, 1, length(a.name) - 3) || 'new'
    JOIN zart_runs AS r ON r.run_id = a.run_id WHERE a.name LIKE 's%-old'
"""
_ATTEMPTS = """
    SELECT s.attempts, s.status, (SELECT count(*) FROM zart_attempts AS t WHERE t.run_id = s.run_id AND t.name = s.name)
    FROM zart_steps AS s JOIN zart_runs AS r ON r.run_id = s.run_id WHERE r.execution_id = ? AND s.name = ?
"""
_UNDONE = """
    SELECT s.output FROM zart_steps AS s JOIN zart_runs AS r ON r.run_id = s.run_id
    JOIN zart_steps AS u ON u.run_id = s.run_id AND u.name = 'undo:' || s.name AND u.kind = 'undo' AND u.status = 'completed'
    WHERE r.execution_id = ? AND s.details = CAST('undo:' || (u.ordinal - s.ordinal) AS BLOB)
"""
_UNDOS_LEFT = """
    SELECT s.name, s.status FROM zart_steps AS s JOIN zart_runs AS r ON r.run_id = s.run_id
    WHERE r.execution_id = ? AND s.kind = 'undo' AND s.status <> 'completed'
"""


class Verdict:
    """What is wrong in the end, sentence by sentence."""

    def __init__(self, simulation: Simulation) -> None:
        self._world = simulation
        self.findings: list[str] = []

    async def find(self) -> list[str]:
        """Everything that is."""
        client = DurableScheduler(self._world.store)
        rows = await self._all(client)
        for case in self._world.cases.values():
            self._judge(case, rows.get(case.name) or case.ended)
        for row in rows.values():
            if row.execution_id.startswith(("tick-", "one-")) or row.execution_id in self._world.store.starts.inputs:
                self._judge_other(row)
        self._judge_effects()
        self._judge_rows()
        for case in self._world.cases.values():
            if case.name in rows:
                self._judge_sagas(case, rows[case.name])
        self._judge_schedule(rows)
        return self.findings

    async def after_the_purge(self) -> list[str]:
        """Remove everything, and look what is left of it."""
        client = DurableScheduler(self._world.store)
        for _ in range(3):  # an execution that was in the way of another
            await client.purge(older_than=0)
        for table in _TABLES:
            [(count,)] = self._rows(f"SELECT count(*) FROM zart_{table}")
            if count:
                self.findings.append(f"{count} rows of {table} are left when everything has been purged")
        return self.findings

    async def _all(self, client: DurableScheduler) -> dict[str, Execution]:
        rows: dict[str, Execution] = {}
        cursor: str | None = None
        while True:
            page = await client.list(limit=1_000, cursor=cursor)
            rows.update((row.execution_id, row) for row in page.items)
            cursor = page.cursor
            if cursor is None:
                return rows

    def _rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._world.store.do(lambda tx: tx.db.execute(statement, parameters).fetchall())

    # --- executions ---------------------------------------------------------------------------------------------------

    def _judge(self, case: Case, row: Execution | None) -> None:
        say = self.findings.append
        if row is None:
            say(f"{case.name} is lost")
            return
        plan = case.plan
        kind = "error" if plan.fails else "retries" if plan.stumbles > STUMBLES else None
        expected = "cancelled" if case.doomed else "completed" if kind is None else "failed"
        if row.status != expected and not (row.status == "cancelled" and case.cancelled):
            say(f"{case.name} ended {row.status}, not {expected}: {row.error}")
            return
        if row.status == "failed" and (row.failure is None or row.failure.kind != kind):
            say(f"{case.name} failed for {row.failure}, not for {kind}")
        if row.status != "completed":
            return
        if row.attempt != plan.stumbles and not case.operated:
            say(f"{case.name} completed in attempt {row.attempt}, not {plan.stumbles}")
        if case.task == "hurried" and row.output == ["missed"]:
            self._judge_missed(case, row)
        elif any(act.kind == "stuck" for act in plan.acts()):
            say(f"{case.name} completed with {row.output}, though it cannot")
        else:
            self._judge_output(case, row)

    def _judge_missed(self, case: Case, row: Execution) -> None:
        if self._world.weather.pauses and any(act.kind in ("child", "bad child") for act in case.plan.acts()):
            return  # a child has inherited the deadline of the time when it was started, and a pause of its parent is none of its own
        if row.deadline is None or row.finished_at is None or row.finished_at < row.deadline:
            self.findings.append(f"{case.name} missed its deadline {row.deadline} at {row.finished_at}")
        elif not self._world.weather.pauses and (row.deadline - row.created_at).total_seconds() != TIMEOUT:
            self.findings.append(f"{case.name} had a deadline of {row.deadline - row.created_at}")

    def _judge_output(self, case: Case, row: Execution) -> None:
        output, expected = [plain(said) for said in row.output], predict(case.plan)
        if case.operated:
            # Which events it has got depends on what was there when it was begun anew; but they come in order, each once.
            heard = [int(said.split()[1]) for said in output if said.startswith("event ")]
            if heard != sorted(set(heard)):
                self.findings.append(f"{case.name} has heard {heard}")
            output, expected = (
                ["event" if said.startswith("event ") else said for said in words] for words in (output, expected)
            )
        if output != expected:
            self.findings.append(f"the output of {case.name} is {output}, not {expected}")
        if case.operated or case.cancelled:
            return
        if not self._world.weather.repeats and case.task != "hurried":
            self.findings += [
                f"{case.name}: {said}, in fair weather" for said in row.output if said.startswith("~ not once")
            ]
        if row.execution_id == case.name and row is not case.ended:
            self._judge_attempts(case)
        self._judge_bookings(case)

    def _judge_attempts(self, case: Case) -> None:
        """Neither crashes nor lost leases count."""
        for act in case.plan.acts():
            if act.kind in ("flaky", "beat"):
                found = self._rows(_ATTEMPTS, case.name, f"s{act.n}")
                if found != [(act.count + 1, "completed", act.count)]:
                    self.findings.append(f"step s{act.n} of {case.name} has attempts {found}, not {act.count + 1}")

    def _judge_bookings(self, case: Case) -> None:
        for act in case.plan.acts():
            if act.kind == "transaction":
                [(count,)] = self._rows(
                    "SELECT count(*) FROM bookings WHERE execution_id = ? AND n = ?", case.name, act.n
                )
                if count != 1:
                    self.findings.append(f"transaction s{act.n} of {case.name} was committed {count} times")

    def _judge_other(self, row: Execution) -> None:
        """One that is started by a key or by the clock: its input tells what it does."""
        plan = msgspec.convert(row.input, Plan)
        schedule = self._world.clients.schedule
        if row.status == "cancelled" and schedule is not None and schedule.overlap == "cancel":
            return
        if row.status != "completed" or [plain(said) for said in row.output] != predict(plan):
            self.findings.append(
                f"{row.execution_id} ended {row.status} with {row.output}, not {predict(plan)}: {row.error}"
            )
        given = self._world.store.starts.inputs.get(row.execution_id)
        if given is not None and msgspec.json.decode(given, type=Plan) != plan:
            self.findings.append(f"debounced {row.execution_id} was run with {plan.said}, not with what was given last")

    # --- effects ------------------------------------------------------------------------------------------------------

    def _judge_effects(self) -> None:
        world, say = self._world, self.findings.append
        exact = {name for name, case in world.cases.items() if not case.operated and not case.cancelled}
        if not world.weather.repeats:
            for key, count in world.effects.ended.items():
                if count > 1 and key[0] in exact:
                    say(f"step {key[3]!r} of {key[0]!r} had its effect {count} times, in fair weather")
        for key, count in world.outside.once.items():
            if count > 1:
                say(f"step {key[3]!r} of {key[0]!r}, which may run once, was begun {count} times")
        keys = Counter(key for (key,) in self._rows("SELECT key FROM bookings"))
        self.findings += [f"transaction {key} was committed {count} times" for key, count in keys.items() if count > 1]
        self.findings += world.outside.findings

    def _judge_rows(self) -> None:
        say = self.findings.append
        for execution_id, run, name, wake_at in self._rows(_SLEEPS):
            woke = self._world.outside.woke.get((execution_id, run, name))
            if woke is not None and woke < wake_at:
                say(f"sleep {name!r} of {execution_id!r} was over {wake_at - woke} µs early")
        for execution_id, run, name, seq in self._rows(_FORGOTTEN):
            say(f"event {seq} ({name!r}) of run {run} of {execution_id!r} was forgotten by the next one")
        for execution_id, run, name, seq in self._rows(_READ_TWICE):
            say(f"event {seq} ({name!r}) of {execution_id!r} was read, and is there for run {run} again")
        for execution_id, run, name in self._rows(_TWO_WAYS):
            say(f"run {run} of {execution_id!r} went both ways at {name!r}")
        if live := self._rows("SELECT run_id FROM zart_active"):
            say(f"runs {live} are live")

    def _judge_sagas(self, case: Case, row: Execution) -> None:
        outside = self._world.outside
        undone = {msgspec.json.decode(output) for (output,) in self._rows(_UNDONE, case.name)}
        if not case.operated and not case.cancelled:
            for name, status in self._rows(_UNDOS_LEFT, case.name):
                self.findings.append(f"{name!r} of {case.name} is {status}")
        exact = row.status != "cancelled" and row.output != ["missed"] and not case.operated
        fate = {act.n: act.kind == "saga" for act in case.plan.acts() if act.kind in ("saga", "kept saga")}
        for key, step in outside.done[case.name].items():
            if key in undone and key not in outside.undone:
                self.findings.append(f"the booking {key} of {case.name} is said to be undone, and is not")
            number = int(step[1:].split("-")[0])
            if exact and number in fate and fate[number] != (key in outside.undone):
                self.findings.append(f"the booking {step!r} of {case.name} was undone {outside.undone[key]} times")

    # --- the clock ----------------------------------------------------------------------------------------------------

    def _judge_schedule(self, rows: dict[str, Execution]) -> None:
        first, say = self._world.clients.schedule, self.findings.append
        if first is None:
            return
        [(counter, skipped, next_at)] = self._rows("SELECT counter, skipped, next_at FROM zart_recurrences")
        began = first.next_times[0].timestamp() - EVERY * (first.counter + first.skipped)
        passed = round((next_at / 1e6 - began) / EVERY, 3)
        if counter + skipped != passed:
            say(f"of {passed} ticks {counter} have started something, and {skipped} have not")
        names = {name for name in rows if name.startswith("tick-")}
        expected = {f"tick-{number}" for number in range(counter)}
        if names - expected or (names != expected and not self._world.weather.purges):
            say(f"of {counter} ticks there are {sorted(names)}")
        late = self._world.store.clock.at(self._world.clients.stopped_at) - next_at
        if late > 3_000_000 and not (first.catch_up == "all" and first.overlap == "skip"):
            say(f"the next tick is {late / 1e6} s late in fair weather")


def plain(said: str) -> str:
    """What was said, where it is told beforehand."""
    return "~" if said.startswith("~") else said
