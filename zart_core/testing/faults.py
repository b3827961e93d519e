"""FaultyScheduler: a store that fails, stalls and forgets to notify, and a process that dies, as real ones do.

Wrap any scheduler, say what goes wrong, and run the real engine on it::

    plan = FaultPlan(
        fail("flush", calls=[2], moment="after"),       # the second flush takes effect, but its answer is lost
        fail("claim", "heartbeat", rate=0.1),           # one call in ten cannot reach the store
        delay("*", by="20ms", rate=0.5),
        duplicate("flush", rate=0.2),                   # a flush that arrives twice
        lose_lease("flush", calls=[9]),                 # before the ninth, the store declares the worker dead
        notifications=NotificationFaults(drop=0.5, double=0.1),
        seed=7,
    )
    async with scheduler, Worker(FaultyScheduler(scheduler, plan), registry):
        ...

Handlers must not notice any of it: whatever fails here is repeated by the engine, and the execution ends as if nothing had.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Literal, Self, TypeVar

from msgspec import Struct, structs

from zart_core.clock import Clock
from zart_core.duration import Duration, micros
from zart_core.errors import BackendUnavailable
from zart_core.records import (
    Claim,
    Claimed,
    DueRecurrences,
    ExecutionRow,
    Fired,
    Firing,
    Flush,
    Flushed,
    HistoryRow,
    Listed,
    ListQuery,
    Look,
    NewPause,
    NewRecurrence,
    NewRun,
    Notification,
    Offer,
    Outlook,
    PauseFilter,
    PauseRow,
    Purge,
    Purged,
    Reaped,
    RecurrenceRow,
    Revival,
    Settled,
    Signals,
    Start,
    Started,
    StatsRow,
    StepKey,
    StepRow,
    Watch,
    WorkerInfo,
)
from zart_core.scheduler import Scheduler

T = TypeVar("T")

Moment = Literal["before", "after"]

METHODS: Final = frozenset(
    (
        "open",
        "close",
        "migrate",
        "start",
        "offer_event",
        "cancel",
        "resume",
        "pause",
        "lift",
        "pauses",
        "purge",
        "recurrences",
        "put_recurrence",
        "due_recurrences",
        "fire",
        "begin_run",
        "revive",
        "runs",
        "get",
        "settled",
        "list",
        "history",
        "published",
        "stats",
        "register",
        "heartbeat",
        "claim",
        "look",
        "flush",
        "signals",
        "reap",
        "release",
        "deregister",
        "transact",
        "cancel_children",
    )
)
"""What can fail: every call of a scheduler that goes to its store."""


NOT_REPEATABLE: Final = frozenset(("open", "close", "claim"))
"""Calls that a network does not repeat unheard: what a claim was given twice nobody would know of."""


FaultKind = Literal["fail", "delay", "hang", "crash", "disconnect", "duplicate", "lose_lease"]


class Fault(Struct, frozen=True, kw_only=True):
    """One way in which calls go wrong; made by :func:`fail`, :func:`delay`, :func:`hang`, :func:`disconnect`, :func:`duplicate`,
    :func:`lose_lease` and :func:`crash`.

    It hits the calls numbered in ``calls`` (1 is the first of its method after the plan was made), and any other call with the
    probability ``rate``.
    """

    kind: FaultKind
    methods: frozenset[str]
    moment: Moment
    calls: frozenset[int]
    rate: float
    seconds: float = 0.0
    lasting: int = 0


def fail(*methods: str, calls: Iterable[int] = (), rate: float | None = None, moment: Moment = "before") -> Fault:
    """Calls of ``methods`` (``"*"``: of all) raise ``BackendUnavailable``, ``"before"`` or ``"after"`` they took effect.

    ``calls`` gives the numbers of the calls that fail, ``rate`` a probability for each; without both, every call fails.
    """
    return _fault("fail", methods, calls, rate, moment=moment)


def delay(
    *methods: str, by: Duration, calls: Iterable[int] = (), rate: float | None = None, moment: Moment = "before"
) -> Fault:
    """Calls take longer ``by`` this much real time, before or after they took effect. ``calls`` and ``rate`` as for :func:`fail`."""
    seconds = micros(by, what="by") / 1_000_000
    if seconds < 0:
        raise ValueError(f"a delay cannot be negative: {by!r}")
    return _fault("delay", methods, calls, rate, moment=moment, seconds=seconds)


def hang(*methods: str, calls: Iterable[int] = (), rate: float | None = None, moment: Moment = "before") -> Fault:
    """Calls do not return, before or after they took effect, until :meth:`FaultPlan.heal`; then they go on as if nothing had been."""
    return _fault("hang", methods, calls, rate, moment=moment)


def disconnect(
    *methods: str, lasting: int = 0, calls: Iterable[int] = (), rate: float | None = None, moment: Moment = "before"
) -> Fault:
    """The connection breaks in these calls: they fail, before or after they took effect, and so do all calls that are under way then, which
    take effect, and the next ``lasting`` calls of any method, which do not."""
    if lasting < 0:
        raise ValueError(f"lasting is a number of calls, not {lasting!r}")
    return _fault("disconnect", methods, calls, rate, moment=moment, lasting=lasting)


def duplicate(*methods: str, calls: Iterable[int] = (), rate: float | None = None) -> Fault:
    """Calls reach the store twice, one right after the other; the caller hears the second answer.

    For every method but ``claim``, whose answer is all that tells what was leased. A ``flush`` that ended or suspended a run is then
    answered with the run lost, as one that is repeated because its answer was lost.
    """
    if NOT_REPEATABLE & set(methods):
        raise ValueError(f"calls of {', '.join(sorted(NOT_REPEATABLE & set(methods)))} are never repeated unheard")
    fault = _fault("duplicate", methods, calls, rate, moment="before")
    return structs.replace(fault, methods=fault.methods - NOT_REPEATABLE)


def lose_lease(*methods: str, calls: Iterable[int] = (), rate: float | None = None, moment: Moment = "before") -> Fault:
    """The store declares the worker dead, before or after these calls of it: what it holds is free at once, and it hears of that as ever.

    It is for the schedulers of workers, one for each: nothing happens where none has registered.
    """
    return _fault("lose_lease", methods, calls, rate, moment=moment)


def crash(*methods: str, calls: Iterable[int] = (), rate: float | None = None, moment: Moment = "before") -> Fault:
    """The process dies in these calls as by ``kill -9``, before or after they took effect: nothing of it is cleaned up.

    For worker processes of their own: it kills whatever process makes the call.
    """
    return _fault("crash", methods, calls, rate, moment=moment)


def _fault(
    kind: FaultKind,
    methods: Sequence[str],
    calls: Iterable[int],
    rate: float | None,
    *,
    moment: Moment,
    seconds: float = 0.0,
    lasting: int = 0,
) -> Fault:
    named = METHODS if "*" in methods else frozenset(methods)
    if not named or not named <= METHODS:
        unknown = ", ".join(sorted(named - METHODS)) or "none"
        raise ValueError(f"a fault needs methods of a scheduler (or '*'), not {unknown}")
    if moment not in ("before", "after"):
        raise ValueError(f"moment must be 'before' or 'after', not {moment!r}")
    numbers = frozenset(calls)
    if any(number < 1 for number in numbers):
        raise ValueError("calls are numbered from 1")
    if rate is None:
        rate = 0.0 if numbers else 1.0
    return Fault(
        kind=kind,
        methods=named,
        moment=moment,
        calls=numbers,
        rate=_probability("rate", rate),
        seconds=seconds,
        lasting=lasting,
    )


class NotificationFaults(Struct, frozen=True, kw_only=True):
    """How notifications go wrong: the probability of each to be dropped, or else to be heard twice."""

    drop: float = 0.0
    double: float = 0.0

    def __post_init__(self) -> None:
        _probability("drop", self.drop)
        _probability("double", self.double)


def _probability(what: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} is a probability between 0 and 1, not {value!r}")
    return value


class FaultPlan:
    """What goes wrong, and a record of it. One plan may serve several schedulers; their calls are counted together.

    The same ``seed`` rolls the same dice: given the same order of calls, the same ones are hit. For faults that do not depend on
    the order, give the numbers of the calls.
    """

    def __init__(self, *faults: Fault, notifications: NotificationFaults | None = None, seed: int = 0) -> None:
        self._faults = list(faults)
        self._notifications = notifications or NotificationFaults()
        self._random = random.Random(seed)
        self._healed: asyncio.Event = asyncio.Event()
        self.calls: Counter[str] = Counter()
        """How often each method was called."""
        self.hit: Counter[tuple[str, str, Moment]] = Counter()
        """How often each (method, kind of fault, moment) has happened."""
        self.hanging = 0
        """How many calls hang now."""
        self.cuts = 0
        """How often the connection was broken."""
        self._down = 0

    def __repr__(self) -> str:
        return f"FaultPlan(faults={len(self._faults)}, hit={sum(self.hit.values())}, hanging={self.hanging})"

    def add(self, *faults: Fault) -> None:
        """From now on these go wrong too. Calls are still numbered from the first call of their method."""
        self._faults.extend(faults)

    def heal(self) -> None:
        """From now on nothing goes wrong, notifications included, and what hangs goes on. :meth:`add` may break it again."""
        self._faults.clear()
        self._notifications = NotificationFaults()
        self._down = 0
        # At once, not when each has heard of it: who waits for the next one to hang shall not take these for it.
        self.hanging = 0
        self._healed.set()
        self._healed = asyncio.Event()

    # --- for FaultyScheduler ------------------------------------------------------------------------------------------

    def count(self, method: str) -> tuple[int, list[Fault]]:
        """One more call of ``method``: its number, and the faults that hit it, before or after."""
        self.calls[method] += 1
        number = self.calls[method]
        return number, [fault for fault in self._faults if method in fault.methods and self._hits(fault, number)]

    def _hits(self, fault: Fault, number: int) -> bool:
        # No roll where the answer is fixed: exact plans stay exact beside random ones.
        if number in fault.calls or fault.rate >= 1.0:
            return True
        return fault.rate > 0.0 and self._random.random() < fault.rate

    def check_connection(self, method: str, number: int) -> None:
        """Raise if the connection is broken still."""
        if self._down > 0:
            self._down -= 1
            raise BackendUnavailable(f"injected fault: call {number} of {method} found no connection")

    def check_cut(self, cuts: int, method: str, number: int) -> None:
        """Raise if the connection was broken since there were ``cuts`` breaks: the call was under way."""
        if self.cuts != cuts:
            raise BackendUnavailable(
                f"injected fault: the connection broke under call {number} of {method}: it took effect, its answer was lost"
            )

    async def strike(
        self, method: str, number: int, faults: list[Fault], moment: Moment, lose: Callable[[], Awaitable[None]]
    ) -> None:
        """Let happen what goes wrong at this moment of call ``number``, in the order in which the faults were planned. ``lose`` declares
        the caller dead."""
        for fault in faults:
            if fault.moment != moment or fault.kind == "duplicate":
                continue
            self.hit[method, fault.kind, moment] += 1
            if fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "hang":
                await self._hang()
            elif fault.kind == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.kind == "lose_lease":
                await lose()
            else:
                if fault.kind == "disconnect":
                    self.cuts += 1
                    self._down = fault.lasting
                effect = "did not take effect" if moment == "before" else "took effect, its answer was lost"
                raise BackendUnavailable(f"injected fault: call {number} of {method} {effect}")

    async def _hang(self) -> None:
        healed = self._healed
        self.hanging += 1
        try:
            await healed.wait()
        finally:
            if not healed.is_set():  # the call was cancelled
                self.hanging -= 1

    def copies(self) -> int:
        """How often the next notification is heard: 0, 1 or 2 times."""
        faults = self._notifications
        if faults.drop > 0.0 and self._random.random() < faults.drop:
            return 0
        return 2 if faults.double > 0.0 and self._random.random() < faults.double else 1


class FaultyScheduler:
    """A scheduler over ``inner`` whose calls go wrong by ``plan``. It is a full ``Scheduler``, for workers and clients alike.

    What it injects is within the contract: ``BackendUnavailable`` (the outcome is unknown to the caller), any delay, and lost or
    doubled notifications. ``inner`` itself stays usable, and sees no faults. Operations of ``inner`` beyond the contract (an audit)
    are passed through.
    """

    def __init__(self, inner: Scheduler, plan: FaultPlan) -> None:
        self.inner = inner
        self.plan = plan
        self.clock: Clock = inner.clock
        self._worker_id: int | None = None

    def __repr__(self) -> str:
        return f"FaultyScheduler({self.inner!r}, {self.plan!r})"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        number, faults = self.plan.count(method)
        self.plan.check_connection(method, number)
        cuts = self.plan.cuts
        if not faults:
            answer = await call()
        else:
            await self.plan.strike(method, number, faults, "before", self._lose)
            if any(fault.kind == "duplicate" for fault in faults):
                self.plan.hit[method, "duplicate", "before"] += 1
                await call()
            answer = await call()
            await self.plan.strike(method, number, faults, "after", self._lose)
        self.plan.check_cut(cuts, method, number)
        return answer

    async def _lose(self) -> None:
        if self._worker_id is not None:
            worker_id, self._worker_id = self._worker_id, None
            await self.inner.deregister(worker_id)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        await self._through("open", self.inner.open)

    async def close(self) -> None:
        await self._through("close", self.inner.close)

    @property
    def is_open(self) -> bool:
        return self.inner.is_open

    @property
    def transactions(self) -> Literal["async", "plain"]:
        return self.inner.transactions

    @property
    def elsewhere(self) -> bool:
        return self.inner.elsewhere

    async def migrate(self) -> None:
        await self._through("migrate", self.inner.migrate)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- starting and clients -----------------------------------------------------------------------------------------

    async def start(self, starts: Sequence[Start], tx: object = None) -> list[Started]:
        return await self._through("start", lambda: self.inner.start(starts, tx))

    async def offer_event(self, offer: Offer, tx: object = None) -> bool:
        return await self._through("offer_event", lambda: self.inner.offer_event(offer, tx))

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        done = False

        async def call() -> StepRow | None:
            nonlocal done
            row = await self.inner.transact(key, work)
            done = True
            return row

        try:
            return await self._through("transact", call)
        except asyncio.CancelledError:
            if not done:
                raise
            # Raised as it is, it would say that nothing took effect.
            number = self.plan.calls["transact"]
            raise BackendUnavailable(
                f"injected fault: call {number} of transact took effect, its caller gave up before the answer"
            ) from None

    async def cancel(self, execution_id: str, reason: str | None) -> bool:
        return await self._through("cancel", lambda: self.inner.cancel(execution_id, reason))

    async def resume(self, execution_id: str) -> bool:
        return await self._through("resume", lambda: self.inner.resume(execution_id))

    async def pause(self, new: NewPause) -> int:
        return await self._through("pause", lambda: self.inner.pause(new))

    async def lift(self, wanted: PauseFilter) -> int:
        return await self._through("lift", lambda: self.inner.lift(wanted))

    async def pauses(self, worker_id: int | None = None) -> Sequence[PauseRow]:
        return await self._through("pauses", lambda: self.inner.pauses(worker_id))

    async def purge(self, purge: Purge) -> Purged:
        return await self._through("purge", lambda: self.inner.purge(purge))

    async def recurrences(self, name: str | None = None) -> Sequence[RecurrenceRow]:
        return await self._through("recurrences", lambda: self.inner.recurrences(name))

    async def put_recurrence(self, new: NewRecurrence) -> bool:
        return await self._through("put_recurrence", lambda: self.inner.put_recurrence(new))

    async def due_recurrences(self, limit: int) -> DueRecurrences:
        return await self._through("due_recurrences", lambda: self.inner.due_recurrences(limit))

    async def fire(self, firing: Firing) -> Fired | None:
        return await self._through("fire", lambda: self.inner.fire(firing))

    async def begin_run(self, new: NewRun) -> Started | None:
        return await self._through("begin_run", lambda: self.inner.begin_run(new))

    async def revive(self, revival: Revival) -> bool:
        return await self._through("revive", lambda: self.inner.revive(revival))

    async def runs(self, execution_id: str, limit: int) -> Sequence[ExecutionRow]:
        return await self._through("runs", lambda: self.inner.runs(execution_id, limit))

    async def get(self, execution_id: str, run: int | None = None) -> ExecutionRow | None:
        return await self._through("get", lambda: self.inner.get(execution_id, run))

    async def settled(self, execution_ids: Sequence[str]) -> Settled:
        return await self._through("settled", lambda: self.inner.settled(execution_ids))

    async def history(self, execution_id: str, run: int | None = None) -> HistoryRow | None:
        return await self._through("history", lambda: self.inner.history(execution_id, run))

    async def published(self, execution_id: str) -> dict[str, bytes] | None:
        return await self._through("published", lambda: self.inner.published(execution_id))

    async def stats(self) -> StatsRow:
        return await self._through("stats", self.inner.stats)

    # --- workers ------------------------------------------------------------------------------------------------------

    async def register(self, info: WorkerInfo, lease: int) -> int:
        self._worker_id = await self._through("register", lambda: self.inner.register(info, lease))
        return self._worker_id

    async def heartbeat(self, worker_id: int, lease: int) -> None:
        await self._through("heartbeat", lambda: self.inner.heartbeat(worker_id, lease))

    async def claim(self, claim: Claim) -> Claimed:
        return await self._through("claim", lambda: self.inner.claim(claim))

    async def look(self, look: Look) -> Outlook:
        return await self._through("look", lambda: self.inner.look(look))

    async def flush(self, flush: Flush) -> Flushed:
        return await self._through("flush", lambda: self.inner.flush(flush))

    def flush_at_once(self, flush: Flush) -> bool:
        """Never: every flush goes where the plan can strike."""
        return False

    async def cancel_children(
        self, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
    ) -> None:
        cancel = self.inner.cancel_children
        await self._through("cancel_children", lambda: cancel(worker_id, run_id, epoch, calls, reason))

    async def signals(self, watches: Sequence[Watch], worker_id: int) -> Sequence[Signals]:
        return await self._through("signals", lambda: self.inner.signals(watches, worker_id))

    async def reap(self, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        return await self._through("reap", lambda: self.inner.reap(max_deliveries, worker_id))

    async def release(self, worker_id: int, keep: Sequence[int]) -> int:
        return await self._through("release", lambda: self.inner.release(worker_id, keep))

    async def deregister(self, worker_id: int) -> None:
        await self._through("deregister", lambda: self.inner.deregister(worker_id))

    # --- wake-ups -----------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        """Subscribe ``listener`` to what the plan lets through."""

        def heard(notification: Notification) -> None:
            for _ in range(self.plan.copies()):
                listener(notification)

        return self.inner.subscribe(heard)

    # Last, because below it the name would hide the type.
    async def list(self, query: ListQuery) -> Listed:
        return await self._through("list", lambda: self.inner.list(query))
