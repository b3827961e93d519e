"""The ledger that every process writes, read back: who did what, in which order, and why it was done again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from msgspec import Struct

from tests.verification.prediction import Prediction


class Finding(Struct, frozen=True):
    """What may not be: something ``lost``, ``doubled`` or otherwise ``wrong``."""

    kind: str
    text: str


class Begin(Struct, frozen=True):
    """The begin of a body: the ``position`` of its line, the attempt, and the process."""

    position: int
    attempt: int
    pid: str


Key = tuple[str, str]
"""An execution, and the name of a step or call in it."""


class Account:
    """Reads a ledger. ``lost`` are the processes that said that they lost a lease."""

    def __init__(self, entries: Iterable[str], lost: Iterable[str]) -> None:
        self._lost = set(lost)
        self.begins: dict[Key, list[Begin]] = defaultdict(list)
        self.undos: dict[Key, dict[str, list[Begin]]] = defaultdict(lambda: defaultdict(list))
        self.repeats: Counter[str] = Counter()
        """Bodies that ran again, by what explains it."""
        self.failovers = 0
        """How often another process went on with a handler whose process was killed, frozen, drained or without its lease."""
        self._got: dict[Key, list[tuple[int, str]]] = defaultdict(list)
        self._undone: dict[str, set[str]] = defaultdict(set)
        self._lay: dict[Key, int] = {}
        self._woke: dict[Key, int] = {}
        self._signals: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._blows: list[int] = []
        self._lines: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._host: dict[str, str] = {}
        for position, line in enumerate(entries):
            self._read(position, line.split())

    def _read(self, position: int, words: list[str]) -> None:
        match words:
            case [("kill" | "stop" | "cont" | "term" | "part" | "join") as signal, pid]:
                self._signals[pid].append((signal, position))
                return
            case ["blow", *_]:
                self._blows.append(position)
                return
            case ["begin", execution, step, attempt, pid]:
                self.begins[execution, step].append(Begin(position, int(attempt), pid))
            case ["undo", execution, step, nonce, pid]:
                self.undos[execution, step][nonce].append(Begin(position, 0, pid))
                self._undone[execution].add(step)
            case ["end", execution, *_, pid]:
                pass
            case ["got", execution, call, value, pid]:
                self._got[execution, call].append((position, value))
            case ["lay", execution, call, time, pid]:
                self._lay.setdefault((execution, call), int(time))
            case ["woke", execution, call, time, pid]:
                self._woke.setdefault((execution, call), int(time))
            case [("ask" | "hang"), execution, *_, pid]:
                pass
            case _:
                raise ValueError(f"line {position} of the ledger makes no sense: {words}")
        self._lines[execution, pid].append((position, words[0]))
        if words[0] in ("got", "lay", "woke", "ask", "hang"):
            before = self._host.get(execution, pid)
            self.failovers += before != pid and any(at < position for _, at in self._signals[before])
            self._host[execution] = pid

    def findings(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        """Whatever may not be."""
        yield from self._again_though_durable(told)
        yield from self._again_without_reason(told)
        yield from self._seen_in_two_ways(told)
        for name, prediction in told.items():
            yield from self._attempts(name, prediction)
            yield from self._slept(name, prediction)
        for (name, step), begins in self.begins.items():
            known = told.get(name)
            if known is None or step not in {*known.attempts, *known.maybe, "rescue", "cleanup"}:
                yield Finding("wrong", f"{name}: nobody knows of step {step} (line {begins[0].position})")

    # --- what may not be --------------------------------------------------------------------------------------------

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
                return not any(position < at < begin.position and word not in ("begin", "end") for at, word in lines)
        return False

    def _again_without_reason(self, told: dict[str, Prediction]) -> Iterator[Finding]:
        for (name, step), begins in self.begins.items():
            seen: dict[int, Begin] = {}
            for begin in begins:
                first = seen.get(begin.attempt)
                seen[begin.attempt] = begin
                if first is not None:
                    yield from self._explained(
                        f"{name}: attempt {begin.attempt} of step {step}", first, begin, step in told[name].anew
                    )
            for first, second in pairwise(begins):
                if second.attempt < first.attempt and step not in told[name].anew and not self._cut_off(first, second):
                    yield Finding(
                        "wrong", f"{name}: step {step} forgot attempt {first.attempt}, line {second.position}"
                    )
        for (name, step), by_nonce in self.undos.items():
            for begins in by_nonce.values():
                for first, second in pairwise(begins):
                    yield from self._explained(f"{name}: the undo of step {step}", first, second, anew=False)

    def _explained(self, what: str, first: Begin, second: Begin, anew: bool) -> Iterator[Finding]:
        cause = self._cut_off(first, second) or ("handler run again" if anew else None)
        self.repeats[cause or "unexplained"] += 1
        if cause is None:
            yield Finding(
                "doubled",
                f"{what} ran at line {first.position} (process {first.pid}) and again at line {second.position} (process {second.pid}), "
                "and nothing happened to the first",
            )

    def _cut_off(self, first: Begin, second: Begin) -> str | None:
        """What happened to the process of the ``first`` that explains the ``second``."""
        signals = self._signals[first.pid]
        for word, cause in (("kill", "killed"), ("term", "drained")):
            if any(signal == word and position < second.position for signal, position in signals):
                return cause
        for begin, end, cause in (("stop", "cont", "frozen"), ("part", "join", "cut off from the store")):
            stops = [position for signal, position in signals if signal == begin]
            conts = [position for signal, position in signals if signal == end]
            for number, stop in enumerate(stops):
                if stop < second.position and (number >= len(conts) or conts[number] > first.position):
                    return cause
        if first.pid in self._lost:
            return "lease lost"
        if any(first.position < blow < second.position for blow in self._blows):
            return "connection or server lost"
        return None

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
