"""The checks: what the database says against what the ledger says."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from examples.demo.ledger import Entry
from examples.demo.source_tree import SourceFile, Totals, digest_list
from examples.demo.survey import LIST_STEP, file_step
from zart_core import Step


class Check(NamedTuple):
    claim: str
    violations: list[str]

    @property
    def holds(self) -> bool:
        return not self.violations


class Evidence:
    """Everything that was seen of one run of the demo."""

    def __init__(
        self,
        *,
        files: list[SourceFile],
        killed_at: datetime,
        dead_at: datetime,
        killed_pid: int,
        successor_pid: int,
        before: list[Step],
        after: list[Step],
        ledger: list[Entry],
        result: Totals,
        recomputed: Totals,
    ) -> None:
        self.files = files
        self.killed_at = killed_at
        """When SIGKILL was sent."""
        self.dead_at = dead_at
        """When the process was seen to be gone: it may have recorded something in between."""
        self.killed_pid = killed_pid
        self.successor_pid = successor_pid
        self.recorded = {step.name: step for step in before if step.status == "completed"}
        """The steps whose results were in the database when the first worker was dead."""
        self.after = after
        self.ledger = ledger
        self.result = result
        self.recomputed = recomputed

    @cached_property
    def begins(self) -> dict[str, list[int]]:
        """Who began each body, in order."""
        begins: defaultdict[str, list[int]] = defaultdict(list)
        for entry in self.ledger:
            if entry.kind == "begin":
                begins[entry.name].append(entry.pid)
        return begins

    @cached_property
    def ends(self) -> dict[tuple[str, int], list[str]]:
        """The hashes with which each process ended each body."""
        ends: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for entry in self.ledger:
            if entry.kind == "end":
                ends[entry.name, entry.pid].append(entry.sha256)
        return ends

    @property
    def surveyed_before(self) -> int:
        return sum(name != LIST_STEP for name in self.recorded)

    @property
    def repeated(self) -> list[str]:
        """The bodies that were begun more than once."""
        return [name for name, pids in self.begins.items() if len(pids) > 1]

    @property
    def takeover(self) -> float:
        """Seconds from the kill to the first step of the second worker."""
        began = [step.started_at for step in self.after if _pid(step) == self.successor_pid]
        return (min(began) - self.killed_at).total_seconds() if began else float("nan")


def checks(evidence: Evidence) -> list[Check]:
    """All claims of the demo, each with what speaks against it."""
    return [
        Check("every step completed, exactly once in the history", list(_incomplete(evidence))),
        Check(
            "every completed step has one end in the ledger, by the worker that recorded it, with the same hash",
            list(_unwitnessed(evidence)),
        ),
        Check("no step recorded before the kill was begun again", list(_begun_again(evidence))),
        Check("no result recorded before the kill has changed", list(_changed(evidence))),
        Check("at most the one step in flight at the kill was run twice", list(_repeated(evidence))),
        Check(
            "the first worker recorded nothing after its end, the second began nothing before that",
            list(_out_of_order(evidence)),
        ),
        Check("the result equals a computation without the engine", list(_differences(evidence))),
    ]


def _incomplete(evidence: Evidence) -> Iterator[str]:
    expected = {LIST_STEP, *(file_step(file.path) for file in evidence.files)}
    names = [step.name for step in evidence.after]
    yield from (f"{name} is missing" for name in sorted(expected.difference(names)))
    yield from (f"{name} was not asked for" for name in sorted(set(names) - expected))
    yield from (f"{name} is there {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1)
    yield from (f"{step.name} is {step.status}" for step in evidence.after if step.status != "completed")


def _unwitnessed(evidence: Evidence) -> Iterator[str]:
    for step in evidence.after:
        stored = digest_list(evidence.files) if step.name == LIST_STEP else step.output["sha256"]
        hashes = evidence.ends.get((step.name, _pid(step)), [])
        if hashes != [stored]:
            yield f"{step.name} was recorded by {step.worker} with hash {stored}; its ends in the ledger: {hashes}"


def _begun_again(evidence: Evidence) -> Iterator[str]:
    for name in evidence.recorded:
        if (pids := evidence.begins.get(name, [])) != [evidence.killed_pid]:
            yield f"{name} was begun by {pids}"


def _changed(evidence: Evidence) -> Iterator[str]:
    after = {step.name: step for step in evidence.after}
    yield from (name for name, step in evidence.recorded.items() if after.get(name) != step)


def _repeated(evidence: Evidence) -> Iterator[str]:
    if len(evidence.repeated) > 1:
        yield f"{len(evidence.repeated)} steps were"
    for name in evidence.repeated:
        if (pids := evidence.begins[name]) != [evidence.killed_pid, evidence.successor_pid]:
            yield f"{name} was begun by {pids}"


def _out_of_order(evidence: Evidence) -> Iterator[str]:
    for step in evidence.after:
        pid, finished = _pid(step), step.finished_at
        if pid == evidence.killed_pid and (finished is None or finished > evidence.dead_at):
            yield f"{step.name} of the first worker finished at {finished}, the first was dead at {evidence.dead_at}"
        elif pid == evidence.successor_pid and step.started_at < evidence.dead_at:
            yield f"{step.name} of the second worker began at {step.started_at}, the first was dead at {evidence.dead_at}"
        elif pid not in (evidence.killed_pid, evidence.successor_pid):
            yield f"{step.name} was recorded by {step.worker}"


def _differences(evidence: Evidence) -> Iterator[str]:
    if evidence.result != evidence.recomputed:
        yield f"{evidence.result} and {evidence.recomputed}"


def _pid(step: Step) -> int:
    """The process that recorded a step (a worker is named HOST-PID); 0 for none."""
    return 0 if step.worker is None else int(step.worker.rsplit("-", 1)[1])
