"""The ledger that every process writes, read back: who did what, in which order, and why it was done again."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Final

from msgspec import Struct

from tests.verification.crowd import crowded
from tests.verification.finding import Finding
from tests.verification.prediction import Prediction


class Hold(Struct):
    """From line ``since`` until line ``until`` a rule of an operator held what is named; ``-`` for anything."""

    since: int
    execution: str
    task: str
    step: str
    until: int = 1 << 60


class Begin(Struct, frozen=True):
    """The begin of a body: the ``position`` of its line, the attempt, and the process."""

    position: int
    attempt: int
    pid: str


ENDS: Final = ("rescue", "cleanup", "expired")
"""Steps of ``on_failure``."""
Key = tuple[str, str]
"""An execution, and the name of a step or call in it."""


class Account:
    """Reads a ledger."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.begins: dict[Key, list[Begin]] = defaultdict(list)
        self.undos: dict[Key, dict[str, list[Begin]]] = defaultdict(lambda: defaultdict(list))
        self.repeats: Counter[str] = Counter()
        """Bodies that ran again, by what explains it."""
        self.failovers = 0
        """How often another process went on with a handler whose process was killed, frozen, drained or without its lease."""
        self._got: dict[Key, list[tuple[int, str]]] = defaultdict(list)
        self._undone: dict[str, set[str]] = defaultdict(set)
        self._ends: dict[str, list[tuple[int, Key]]] = defaultdict(list)
        self._over: dict[str, int] = {}
        self._kept: list[str] = []
        self._felt: dict[Key, list[tuple[int, int]]] = defaultdict(list)
        self._interrupted: dict[Key, int] = {}
        self._rerun: set[Key] = set()
        self._holds: dict[str, Hold] = {}
        self._lay: dict[Key, int] = {}
        self._woke: dict[Key, int] = {}
        self._signals: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._blows: dict[str, list[list[float]]] = defaultdict(list)
        """The first and the last line of each, by what it was."""
        self._lines: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._host: dict[str, str] = {}
        self._stopped: dict[str, int] = {}
        self._thawed: dict[int, int] = {}
        """First lines of processes that went on, each with the line at which its process was stopped."""
        for position, line in enumerate(entries):
            self._read(position, line.split())

    def _read(self, position: int, words: list[str]) -> None:  # noqa: PLR0912, PLR0915 - a case for each word
        match words:
            case [("kill" | "stop" | "cont" | "term" | "part" | "join" | "lapsed" | "lost") as signal, pid]:
                self._signals[pid].append((signal, position))
                if signal == "stop":
                    self._stopped[pid] = position
                return
            case ["kept", pid]:
                self._kept.append(pid)
                return
            case ["over", execution]:
                self._over[execution] = position
                return
            case ["rerun", execution, step]:
                # A new run has the version of its time.
                self._rerun |= {(execution, step), (execution, "@version-1")}
                return
            case ["hold", rule, execution, task, step]:
                self._holds[rule] = Hold(position, execution, task, step)
                return
            case ["lift", rule]:
                self._holds[rule].until = position
                return
            case [_, execution, step, *_] if (execution, step) in self._rerun:
                words[1] = again(execution)
            case _:
                pass
        match words:
            case ["blow", *what]:
                self._blows[" ".join(what)].append([position, math.inf])
                return
            case ["blown", *what]:
                self._blows[" ".join(what)][-1][1] = position
                return
            case ["begin", execution, step, attempt, pid]:
                self.begins[execution, step].append(Begin(position, int(attempt), pid))
            case ["felt", execution, step, attempt, details, pid]:
                self._felt[execution, step].append((int(attempt), int(details)))
            case ["interrupted", execution, step, pid]:
                self._interrupted.setdefault((execution, step), position)
            case ["undo", execution, step, nonce, pid]:
                self.undos[execution, step][nonce].append(Begin(position, 0, pid))
                self._undone[execution].add(step)
            case ["end", execution, step, _, pid]:
                self._ends[pid].append((position, (execution, step)))
            case ["got", execution, call, value, pid]:
                self._got[execution, call].append((position, value))
            case ["lay", execution, call, time, pid]:
                self._lay.setdefault((execution, call), int(time))
            case ["woke", execution, call, time, pid]:
                self._woke.setdefault((execution, call), int(time))
            case [("ask" | "hang" | "left"), execution, *_, pid]:
                pass
            case _:
                raise ValueError(f"line {position} of the ledger makes no sense: {words}")
        self._lines[execution, pid].append((position, words[0]))
        if pid in self._stopped and self._signals[pid][-1][0] == "cont":
            self._thawed[position] = self._stopped.pop(pid)
        if words[0] in ("got", "lay", "woke", "ask", "hang"):
            before = self._host.get(execution, pid)
            self.failovers += before != pid and any(at < position for _, at in self._signals[before])
            self._host[execution] = pid

    @property
    def results(self) -> dict[Key, set[str]]:
        """What handlers were given, by their calls."""
        return {key: {value for _, value in got} for key, got in self._got.items()}

    def findings(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        """Whatever may not be."""
        for (name, step), begins in self.begins.items():
            known = told.get(name)
            if known is None or step not in {*known.attempts, *known.maybe, *ENDS}:
                yield Finding("wrong", f"{name}: nobody knows of step {step} (line {begins[0].position})")
        told = {name: Prediction() for name, _ in [*self.begins, *self.undos, *self._got]} | told
        yield from self._went_on()
        yield from self._again_though_durable(told)
        yield from self._began_when_it_was_over(told)
        yield from self._again_without_reason(told)
        yield from self._seen_in_two_ways(told)
        yield from self._began_while_held(told)
        yield from crowded(self, told)
        for name, prediction in told.items():
            yield from self._attempts(name, prediction)
            yield from self._slept(name, prediction)
            yield from self._ran_at_most_once(name, prediction)
            yield from self._felt_less(name, prediction)

    # --- what may not be --------------------------------------------------------------------------------------------

    def _went_on(self) -> Iterator[Finding]:
        """A worker whose work others have taken hears of it, and one that may have lost its lease begins nothing."""
        for pid in self._kept:
            yield Finding("wrong", f"worker {pid} went on under its lease though others had its work")
        for (name, step), begins in self.begins.items():
            for begin in begins:
                before = [signal for signal, at in self._signals[begin.pid] if at < begin.position]
                # Race: a body that is on its way to its thread begins a little later.
                if before and before[-1] == "lapsed":
                    yield Finding(
                        "wrong",
                        f"{name}: step {step} began (line {begin.position}) in a worker whose lease may be over",
                    )

    def _began_when_it_was_over(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        """Nothing of an execution begins when its end has been told; but parts that were just taken, which it did not wait for."""
        for (name, step), begins in self.begins.items():
            over, known = self._over.get(name), told.get(name)
            if over is None or known is None or known.struck or step in known.maybe:
                continue
            for begin in begins:
                if begin.position > over and not self._thawed_into(name, begin, over):
                    yield Finding(
                        "doubled", f"{name}: step {step} began (line {begin.position}) when it had ended (line {over})"
                    )

    def _again_though_durable(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        for (name, step), begins in self.begins.items():
            got = self._got.get((name, step))
            if not got or step in told[name].anew:
                continue
            for begin in begins:
                if begin.position > got[0][0] and not self._thawed_into(name, begin, got[0][0]):
                    yield Finding(
                        "doubled",
                        f"{name}: step {step} began (line {begin.position}) after its result (line {got[0][0]})",
                    )

    def _thawed_into(self, name: str, begin: Begin, got: int) -> bool:
        """Whether a process was stopped between the decision to begin and the body's first line: no engine can help that.

        Only the lines that it was about to write can be so: after it went on, its handler hears of nothing more.
        """
        stopped = None
        for signal, position in self._signals[begin.pid]:
            if signal == "stop":
                stopped = position
            elif signal == "cont" and stopped is not None and stopped < got and position < begin.position:
                lines = self._lines[name, begin.pid]
                if not any(position < at < begin.position and word not in ("begin", "end") for at, word in lines):
                    return True
        return False

    def doubtful(self, begin: Begin) -> bool:
        """Whether the lease under which this began was lost later, or was about to be."""
        # Race: a process goes on for a moment after the line that says that it is stopped. What it begins then is known by the `cont`.
        return any(
            signal in ("lost", "stop", "cont", "part", "join") and position > begin.position
            for signal, position in self._signals[begin.pid]
        )

    def gone(self, begin: Begin) -> int:
        """The line at which the process of this was killed."""
        return next(
            (at for signal, at in self._signals[begin.pid] if signal == "kill" and at > begin.position), 1 << 60
        )

    def end(self, key: Key, begin: Begin) -> int:
        """The line at which a body has ended; one without such a line never has."""
        return next((at for at, ended in self._ends[begin.pid] if ended == key and at > begin.position), 1 << 60)

    def _again_without_reason(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        for (name, step), begins in self.begins.items():
            seen: dict[int, Begin] = {}
            for begin in begins:
                first = seen.get(begin.attempt)
                seen[begin.attempt] = begin
                if first is not None:
                    yield from self._explained((name, step), f"attempt {begin.attempt}", first, begin, told[name])
            for first, second in pairwise(begins):
                if (
                    second.attempt < first.attempt
                    and step not in told[name].anew
                    and not self._cut_off((name, step), first, second, told[name])
                    and not self._on_its_way(second, first)
                ):
                    yield Finding(
                        "wrong", f"{name}: step {step} forgot attempt {first.attempt}, line {second.position}"
                    )
        for (name, step), by_nonce in self.undos.items():
            for begins in by_nonce.values():
                for first, second in pairwise(begins):
                    yield from self._explained((name, f"undo-{step}"), "the undo", first, second, told[name])

    def _on_its_way(self, begin: Begin, other: Begin) -> bool:
        """Whether this is the very line that a process was about to write when it was stopped, before the ``other`` began: between the
        last look at the lease and the body's first line no engine can help."""
        return self._thawed.get(begin.position, other.position) < other.position

    def _explained(self, key: Key, what: str, first: Begin, second: Begin, told: Prediction) -> Iterator[Finding]:
        name, step = key
        cause = self._cut_off(key, first, second, told) or ("handler run again" if step in told.anew else None)
        if cause is None and self._on_its_way(second, first):
            cause = "frozen on its way to the body"
        self.repeats[cause or "unexplained"] += 1
        if cause is None:
            yield Finding(
                "doubled",
                f"{name}: {what} of step {step} ran at line {first.position} (process {first.pid}) "
                f"and again at line {second.position} (process {second.pid}), and nothing happened to the first",
            )

    def _cut_off(self, key: Key, first: Begin, second: Begin, told: Prediction) -> str | None:
        """What happened to the process of the ``first`` that explains the ``second``."""
        signals = self._signals[first.pid]
        if any(signal == "kill" and position < second.position for signal, position in signals):
            return "killed"
        for begin, end, cause in (("stop", "cont", "frozen"), ("part", "join", "cut off from the store")):
            stops = [position for signal, position in signals if signal == begin]
            conts = [position for signal, position in signals if signal == end]
            for number, stop in enumerate(stops):
                if stop < second.position and (number >= len(conts) or conts[number] > first.position):
                    return cause
        # It may hear of it later than others have its work.
        if any(signal == "lost" and position > first.position for signal, position in signals):
            return "lease lost"
        if any(signal == "term" and position < second.position for signal, position in signals):
            # A drain lets bodies come to their end, and keeps what they return while there is a server.
            ended = any(end == key and first.position < at < second.position for at, end in self._ends[first.pid])
            if not ended or self._struck(first, second, "server crashes"):
                return "drained"
        # A result is sent again when its connection has ended, but a transaction is undone with it.
        if key[1] in told.transactions and self._struck(first, second, *self._blows):
            return "connection or server lost"
        return None

    def _struck(self, first: Begin, second: Begin, *kinds: str) -> bool:
        """Whether one of these blows can have struck between the two."""
        blows = (blow for kind in kinds for blow in self._blows[kind])
        return any(begin < second.position and first.position < end for begin, end in blows)

    def _began_while_held(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        """Nothing begins that an operator holds, but what cleans up."""
        for hold in self._holds.values():
            for (name, step), begins in self.begins.items():
                known = told.get(name)
                if (
                    known is None
                    or step in ENDS
                    or hold.execution not in ("-", name)
                    or hold.task not in ("-", known.task)
                    or not (hold.step == "-" or fnmatchcase(step, hold.step))
                ):
                    continue
                for begin in begins:
                    if hold.since < begin.position < hold.until and not self._thawed_into(name, begin, hold.since):
                        yield Finding(
                            "wrong", f"{name}: step {step} began (line {begin.position}) while {hold} held it"
                        )

    def _ran_at_most_once(self, name: str, told: Prediction) -> Iterator[Finding]:
        for step in told.once:
            begins = self.begins.get((name, step), [])
            if len(begins) > 1:
                yield Finding("doubled", f"{name}: step {step} may run at most once, and ran {len(begins)} times")
            at = self._interrupted.get((name, step))
            if at is None or not begins:
                continue
            if (name, step) in self._got:
                yield Finding("doubled", f"{name}: step {step} was interrupted, and has a result")
            if self._cut_off((name, step), begins[0], Begin(at, 0, ""), told) is None:
                yield Finding("wrong", f"{name}: step {step} was called interrupted, and nothing happened to it")

    def _felt_less(self, name: str, told: Prediction) -> Iterator[Finding]:
        """A failed attempt leaves to the next one the details of its last heartbeat."""
        for step, fails in told.beats.items():
            for attempt, details in self._felt.get((name, step), []):
                if (details < fails) if attempt else (details > fails):
                    yield Finding("lost", f"{name}: attempt {attempt} of step {step} was told {details}, not {fails}")

    def _seen_in_two_ways(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        for (name, call), got in self._got.items():
            if len({value for _, value in got}) > 1 and call not in told[name].anew:
                yield Finding(
                    "doubled", f"{name}: call {call} gave different values: {sorted({value for _, value in got})}"
                )

    def _attempts(self, name: str, told: Prediction) -> Iterator[Finding]:
        """Neither a kill nor a lost lease uses up an attempt, and none is left out."""
        if told.struck or told.optional:
            return
        for step, count in told.attempts.items():
            attempts = {begin.attempt for begin in self.begins.get((name, step), [])}
            if attempts != set(range(count)) and not (step in told.anew and attempts > set(range(count))):
                kind = "lost" if len(attempts) < count else "doubled"
                yield Finding(kind, f"{name}: step {step} was to have {count} attempts, and had {sorted(attempts)}")
        undone = self._undone.get(name, set())
        if undone != told.undone:
            yield Finding("wrong", f"{name}: {sorted(undone)} were undone, not {sorted(told.undone)}")

    def _slept(self, name: str, told: Prediction) -> Iterator[Finding]:
        for sleep, length in told.sleeps.items():
            lay, woke = self._lay.get((name, sleep)), self._woke.get((name, sleep))
            if lay is not None and woke is not None and woke - lay < length * 1_000:
                yield Finding("wrong", f"{name}: sleep {sleep} of {length} ms took {woke - lay} µs")


def again(name: str) -> str:
    """What the steps of an execution are told under that were made again by a rerun."""
    return f"{name}^1"
