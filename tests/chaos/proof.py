"""What the ledger of a storm must show, whatever happened to the workers.

The ledger is a file outside of the store, appended to by every process, so the order of its lines is the order of what happened.
Besides the lines of ``Mixed`` it has those of the storm: ``kill PID``, ``stop PID`` and ``cont PID``, each before the signal is sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from msgspec import Struct

from tests.behaviour.programs import Act

Programs = Mapping[str, list[Act]]


class Begin(Struct, frozen=True):
    """The begin of a step's body: the ``position`` of its line in the ledger, the attempt, and the process."""

    position: int
    attempt: int
    pid: str


class Proof:
    """Reads a ledger. ``lost`` are the processes that said that they lost a lease."""

    def __init__(self, entries: Iterable[str], programs: Programs, lost: Iterable[str] = ()) -> None:
        self._programs = programs
        self._lost = set(lost)
        self._begins: dict[tuple[str, str], list[Begin]] = defaultdict(list)
        self._got: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._lay: dict[tuple[str, str], int] = {}
        self._woke: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._lines: dict[str, list[int]] = defaultdict(list)
        self._heard: dict[str, list[int]] = defaultdict(list)
        self._stops: dict[str, list[int]] = defaultdict(list)
        self._conts: dict[str, list[int]] = defaultdict(list)
        self._kills: dict[str, int] = {}
        for position, line in enumerate(entries):
            self._read(position, line.split())

    def _read(self, position: int, words: list[str]) -> None:
        match words:
            case ["kill", pid]:
                self._kills[pid] = position
            case ["stop", pid]:
                self._stops[pid].append(position)
            case ["cont", pid]:
                self._conts[pid].append(position)
            case ["begin", execution, step, attempt, pid]:
                self._begins[execution, step].append(Begin(position, int(attempt), pid))
            case ["got", execution, call, value, pid]:
                self._got[execution, call].append((position, value))
                self._heard[pid].append(position)
            case ["lay", execution, call, time, _]:
                self._lay.setdefault((execution, call), int(time))
            case ["woke", execution, call, time, _]:
                self._woke[execution, call].append(int(time))
            case ["end", *_]:
                pass
            case _:
                raise ValueError(f"line {position} of the ledger makes no sense: {words}")
        if words[0] not in ("kill", "stop", "cont"):
            self._lines[words[-1]].append(position)

    @property
    def reruns(self) -> int:
        """How many bodies were run more than once, an attempt being one body."""
        return sum(len(begins) - len({begin.attempt for begin in begins}) for begins in self._begins.values())

    @property
    def steps(self) -> int:
        """How many steps there were, a step being one however often it ran."""
        return len(self._begins)

    @property
    def deaths(self) -> int:
        """How many workers were killed."""
        return len(self._kills)

    @property
    def freezes(self) -> int:
        """How often a worker was stopped."""
        return sum(map(len, self._stops.values()))

    def findings(self) -> list[str]:
        """Whatever may not be; empty when all is well."""
        return [text for texts in self.by_kind().values() for text in texts]

    def by_kind(self) -> dict[str, list[str]]:
        """The findings: what was doubled, repeated though nothing explains it, wrong, or lost."""
        return {
            "doubled": [*self._what_was_durable_ran_again(), *self._seen_in_two_ways()],
            "unexplained": [*self._ran_twice_without_reason()],
            "wrong": [*self._woke_early()],
            "lost": [*self._missing()],
        }

    # --- what may not be ----------------------------------------------------------------------------------------------

    def _what_was_durable_ran_again(self) -> Iterable[str]:
        """A step never begins after its result has reached the handler."""
        for (execution, step), begins in self._begins.items():
            got = self._got.get((execution, step))
            for begin in begins:
                if got and begin.position > got[0][0] and not self._thawed_into(begin, got[0][0]):
                    yield f"{execution}: step {step} began again (line {begin.position}) after its result (line {got[0][0]})"

    def _thawed_into(self, begin: Begin, got: int) -> bool:
        """Whether a process was stopped between the decision to begin and the body's first line: no engine can help that.

        Only the line that it was about to write can be so, the first after it went on.
        """
        for stop, cont in zip(self._stops[begin.pid], self._conts[begin.pid], strict=False):
            if stop < got and cont < begin.position:
                return not any(cont < line < begin.position for line in self._lines[begin.pid])
        return False

    def _ran_twice_without_reason(self) -> Iterable[str]:
        """A body runs once more only when the process that ran it was killed or stopped, or had lost its lease."""
        for (execution, step), begins in self._begins.items():
            for first, second in pairwise(begins):
                if self._thawed_into(second, first.position):
                    continue
                if first.attempt == second.attempt and not self._cut_off(first, second.position):
                    yield (
                        f"{execution}: attempt {first.attempt} of step {step} ran at line {first.position} (process {first.pid}) and "
                        f"again at line {second.position} (process {second.pid}), though the first was neither killed nor stopped"
                    )
                elif second.attempt < first.attempt:
                    yield f"{execution}: step {step} forgot attempt {first.attempt}, line {second.position}"

    def _cut_off(self, first: Begin, before: int) -> bool:
        killed = self._kills.get(first.pid)
        if first.pid in self._lost or (killed is not None and killed < before):
            return True
        # It may have lost its lease as well, and have been killed before the store could tell it. What a handler is given is durable:
        # who was given anything has reached the store, is told what it has lost, and says so.
        if killed is not None and not any(before < heard < killed for heard in self._heard[first.pid]):
            return True
        conts = self._conts[first.pid]
        return any(
            stop < before and (number >= len(conts) or conts[number] > first.position)
            for number, stop in enumerate(self._stops[first.pid])
        )

    def _seen_in_two_ways(self) -> Iterable[str]:
        """Whatever a call has given to the handler, it gives to it on every replay."""
        for (execution, call), got in self._got.items():
            if len({value for _, value in got}) > 1:
                yield f"{execution}: call {call} gave different values: {sorted({value for _, value in got})}"

    def _woke_early(self) -> Iterable[str]:
        for (execution, call), times in self._woke.items():
            length = self._programs[execution][int(call)].length * 1_000
            if min(times) - self._lay[execution, call] < length:
                yield f"{execution}: sleep {call} of {length} µs took {min(times) - self._lay[execution, call]} µs"

    def _missing(self) -> Iterable[str]:
        """Nothing is lost, events come in their order, and no attempt beyond those that the program asks for."""
        for execution, acts in self._programs.items():
            events = 0
            for number, act in enumerate(acts):
                if act.kind == "event":
                    events += 1
                    got = {value for _, value in self._got.get((execution, f"{number}"), [])}
                    if got != {f"{events}"}:
                        yield f"{execution}: wait {number} should have got event {events}, not {sorted(got)}"
                elif act.kind == "sleep":
                    if (execution, f"{number}") not in self._woke:
                        yield f"{execution}: sleep {number} never ended"
                else:
                    for step in names(number, act):
                        attempts = {begin.attempt for begin in self._begins.get((execution, step), [])}
                        if attempts != set(range(act.failures + 1)) or (execution, step) not in self._got:
                            yield f"{execution}: step {step} with {act.failures} failures had the attempts {sorted(attempts)}"


def names(number: int, act: Act) -> list[str]:
    """The steps of an act."""
    match act.kind:
        case "step":
            return [f"{number}"]
        case "pair":
            return [f"{number}l", f"{number}r"]
        case "fan":
            return [f"{number}l", f"{number}r", f"{number}o"]
        case _:
            return []


def predicted(acts: list[Act]) -> int:
    """The output of a program that is offered the events 1, 2, 3 …"""
    events = sum(act.kind == "event" for act in acts)
    return sum(len(names(number, act)) for number, act in enumerate(acts)) + events * (events + 1) // 2
