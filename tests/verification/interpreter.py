"""The one handler of the workload: it does what its program says, and tells the ledgers."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from typing import Any, ClassVar, Final

from msgspec import Struct
from msgspec.structs import replace

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE
from tests.verification.prediction import child_id, id_of, lost_to
from tests.verification.program import (
    Act,
    Beat,
    Child,
    Each,
    Fan,
    Hear,
    Idle,
    Note,
    Once,
    Patch,
    Program,
    Race,
    Saga,
    Sleep,
    Step,
    Together,
    Transaction,
)
from zart_core import (
    BusinessErr,
    EventTimeout,
    ExecutionFailed,
    ExecutionFailure,
    Ok,
    RetryExhausted,
    StepError,
    StepFailed,
    StepHandle,
    StepInterrupted,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    ZartErr,
    context,
)

HOUR: Final = 3_600.0
DEADLINE: Final = "2s"
PATIENCE: Final = "80ms"
"""How long a wait for an event lasts that comes late, or never."""
_INSERT: Final = "INSERT INTO verified (execution, name, amount) VALUES ({})"


class Receipt(Struct, frozen=True):
    """What a step returns: a ``nonce`` that no other run of its body would return, and so many bytes."""

    step: str
    nonce: str
    filling: str = ""


class Broken(Exception):
    """What a saga, a step or a program ends with that is to fail."""


class Interpreter(TaskHandler[Program, list[str]]):
    """``deployed``: the code is that of after the deployment.

    Lines ``begin ID STEP ATTEMPT PID`` and ``end …`` around a body, or ``left …`` when it is cancelled; ``got ID STEP NONCE PID`` when the
    handler has its result, ``lay ID SLEEP MICROS PID`` and ``woke …`` around a sleep; ``ask ID EVENT VALUE PID`` for an event, ``hang ID PID``
    for a cancellation; ``felt ID STEP ATTEMPT DETAILS PID`` for the details of a heartbeat, and ``interrupted ID STEP PID``. ``ID`` has the
    number of the round of an execution that was restarted.
    """

    name: ClassVar[str | None] = "verified"
    max_retries: ClassVar[int] = 0

    def __init__(self, place: Place, *, deployed: bool = False) -> None:
        self.place = place
        self.deployed = deployed

    async def run(self, ctx: TaskContext, data: Program) -> list[str]:
        self.write(ctx, "got", f"@version-{data.run}", self.version or "1")
        words = await self.block(ctx, data.blocks[data.run - 1])
        if data.run < len(data.blocks):
            await ctx.continue_as_new(replace(data, run=data.run + 1))
        match data.ending:
            case "fails" | "rescued":
                raise Broken("the program fails")
            case "hangs":
                self.write(ctx, "hang")
                await ctx.wait_for_event("release")
            case "expires":
                await self.outlast(ctx, data)
            case "again" if ctx.attempt == 0:
                raise Broken("again")
        return words

    async def outlast(self, ctx: TaskContext, data: Program) -> None:
        """Wait until the deadline."""
        match data.waits:
            case "for an event":
                await ctx.wait_for_event("release")
            case "in a body":
                await ctx.step("hour", self.work, Step("hour", ending="overruns"))
            case "in its handler":
                await asyncio.sleep(HOUR)

    async def on_failure(self, ctx: TaskContext, data: Program, failure: ExecutionFailure) -> list[str]:
        if failure.kind == "cancelled":
            await self.enter(ctx, "cleanup", 1)
            return ["cleaned"]
        if failure.kind == "deadline":
            await self.enter(ctx, "expired", 1)
            return ["expired"]
        if data.ending != "rescued":
            raise Broken(failure.error.message)
        await self.enter(ctx, "rescue", 1)
        return ["rescued"]

    # --- acts -------------------------------------------------------------------------------------------------------

    async def block(self, ctx: TaskContext, acts: list[Act], *, undo: bool = False) -> list[str]:
        return [word for act in acts for word in await self.act(ctx, act, undo)]

    async def act(self, ctx: TaskContext, act: Act, undo: bool) -> list[str]:  # noqa: PLR0912 - a case for each kind
        match act:
            case Step():
                return [await self.step(ctx, act, undo)]
            case Transaction():
                return [await self.transaction(ctx, act)]
            case Sleep():
                self.write(ctx, "lay", act.name, time.time_ns() // 1_000)
                await ctx.sleep(act.name, act.ms / 1_000)
                self.write(ctx, "woke", act.name, time.time_ns() // 1_000)
                return [act.name]
            case Hear():
                return await self.hear(ctx, act)
            case Fan():
                return await self.fan(ctx, act)
            case Race():
                return await self.race(ctx, act)
            case Each():
                items = range(act.count)
                if act.at_once:
                    got = await ctx.map(act.name, items, self.item, concurrency=act.at_once)
                else:
                    got = await ctx.loop(act.name, items, self.item)
                return [f"{act.name}+{sum(got)}"]
            case Together():
                parts = await asyncio.gather(*(self.block(ctx, block, undo=undo) for block in act.blocks))
                return [word for part in parts for word in part]
            case Saga():
                return await self.saga(ctx, act, undo)
            case Child():
                return [await self.child(ctx, act)]
            case Once():
                return [await self.once(ctx, act)]
            case Beat():
                receipt = await ctx.step(act.name, self.beat, act, retry="fixed(1, 20ms)")
                self.write(ctx, "got", act.name, receipt.nonce)
                return [act.name]
            case Patch():
                return [await self.patch(ctx, act)]
            case Idle():
                return [await self.idle(ctx, act)]
            case Note():
                captured = await ctx.capture(act.name, lambda: time.monotonic_ns())
                now = await ctx.now(f"{act.name}n")
                self.write(ctx, "got", act.name, f"{captured}-{now.timestamp()}")
                await ctx.publish("note", act.name)
                return [act.name]

    async def step(self, ctx: TaskContext, act: Step, undo: bool) -> str:
        options: Any = {"retry": f"fixed({act.failures}, 20ms)"} if act.failures else {}
        if act.ending == "overruns":
            options["timeout"] = "40ms"
        if undo:
            options["undo"] = self.undo
        body: Any = self.work_in_thread if act.how == "in a thread" else self.work
        got: Any
        match act.how:
            case "outcome":
                got = await ctx.outcome(act.name, body, act, **options)
            case "step_or" if act.ending == "returns":
                got = await ctx.step_or(act.name, body, act, default=None, **options)
            case _:
                try:
                    got = await ctx.step(act.name, body, act, **options)
                except StepError as error:
                    got = error
        return self.word(ctx, act, got)

    def word(self, ctx: TaskContext, act: Step, got: Any) -> str:
        """What a step's result or failure is called in the output."""
        match got:
            case Receipt() | Ok(Receipt()):
                receipt: Receipt = got if isinstance(got, Receipt) else got.value
                self.write(ctx, "got", act.name, receipt.nonce)
                if receipt.step != act.name:
                    return f"{act.name} got the receipt of {receipt.step}"
                return f"{act.name}#{len(receipt.filling)}"
            case BusinessErr() | StepFailed():
                end = "failed"
            case RetryExhausted():
                end = "exhausted"
            case StepTimedOut():
                end = "timeout"
            case _ if hasattr(got, "error"):  # ZartErr
                return self.word(ctx, act, got.error)
            case _:
                end = repr(got)
        return f"{act.name}!{end}"

    async def once(self, ctx: TaskContext, act: Once) -> str:
        match await ctx.outcome(act.name, self.work, Step(act.name, act.ms), at_most_once=True):
            case Ok(receipt):
                self.write(ctx, "got", act.name, receipt.nonce)
            case ZartErr(StepInterrupted()):
                self.write(ctx, "interrupted", act.name)
            case other:
                return f"{act.name}!{other!r}"
        return act.name

    async def idle(self, ctx: TaskContext, act: Idle) -> str:
        # Until the step was about to begin once: a replay is not held up. One whose time is over there would not come to what it has to undo.
        gate = f"idled-{id_of(ctx.execution_id, ctx.data)}-{act.name}".replace("/", "_")
        if not self.place.gate(gate).exists():
            await asyncio.sleep(act.ms / 1_000)
            self.place.open_gate(gate)
        receipt = await ctx.step(act.name, self.work, Step(act.name, 20))
        self.write(ctx, "got", act.name, receipt.nonce)
        return act.name

    async def patch(self, ctx: TaskContext, act: Patch) -> str:
        is_new = self.deployed and ctx.patched(f"{act.name}p")
        name = f"{act.name}{'new' if is_new else 'old'}"
        receipt = await ctx.step(name, self.work, Step(name, 20))
        self.write(ctx, "got", name, receipt.nonce)
        return act.name

    async def transaction(self, ctx: TaskContext, act: Transaction) -> str:
        book: Any = self.book if STORE == "sqlite" else self.book_on_server
        try:
            nonce = await ctx.transaction(act.name, book, act, retry=f"fixed({act.failures}, 20ms)")
        except RetryExhausted:
            return f"{act.name}!exhausted"
        except StepFailed:
            return f"{act.name}!failed"
        self.write(ctx, "got", act.name, nonce)
        return act.name

    async def enter(self, ctx: TaskContext, name: str, amount: int) -> None:
        """A row of the ledger, for sure."""
        await self.transaction(ctx, Transaction(name, amount))

    async def hear(self, ctx: TaskContext, act: Hear) -> list[str]:
        # Named for the round: what was asked for twice may be offered for the second time when the execution has been restarted.
        event = id_of(act.name, ctx.data)
        words = []
        if act.when in ("late", "never"):
            try:
                await ctx.wait_for_event(event, int, timeout=PATIENCE)
            except EventTimeout:
                words.append(f"{act.name}!late")
        if act.when in ("asked", "late"):
            self.write(ctx, "ask", event, act.value)
        if act.when != "never":
            value = await ctx.wait_for_event(event, int)
            words.append(f"{act.name}={value}")
        return words

    async def fan(self, ctx: TaskContext, act: Fan) -> list[str]:
        handles = [self.scheduled(ctx, step, far) for step, far in zip(act.steps, act.far, strict=True)]
        if all(step.ending == "returns" for step in act.steps):
            ends: list[Any] = await ctx.wait_all(handles)
        else:
            ends = await ctx.wait(handles)
        return [self.word(ctx, step, end) for step, end in zip(act.steps, ends, strict=True)]

    def scheduled(self, ctx: TaskContext, act: Step, far: bool) -> StepHandle[Receipt]:
        options: Any = {"retry": f"fixed({act.failures}, 20ms)"} if act.failures else {}
        if act.ending == "overruns":
            options["timeout"] = "40ms"
        if far:
            return ctx.schedule(act.name, self.work, act, **options)

        async def near() -> Receipt:
            return await self.work(act)

        return ctx.schedule(act.name, near, **options)

    async def race(self, ctx: TaskContext, act: Race) -> list[str]:
        handles: list[StepHandle[Any]] = [
            self.scheduled(ctx, step, far=number % 2 == 0) for number, step in enumerate(act.winners)
        ]
        for name, kind in lost_to(act).items():
            match kind:
                case "sleep":
                    handles.append(ctx.schedule_sleep(name, HOUR))
                case "event":
                    handles.append(ctx.schedule_event(name))
                case "near":
                    handles.append(ctx.schedule(name, lambda: self.linger(act.name)))
                case _:
                    handles.append(ctx.schedule(name, self.linger, act.name))
        if len(act.winners) == 1:
            won = [await ctx.wait_any(handles, name=act.name)]
        else:
            won = await ctx.wait_first(handles, len(act.winners), name=act.name)
        places = sorted(place for place, _ in won)
        for place, receipt in won:
            self.write(ctx, "got", act.winners[place].name, receipt.nonce)
        return [f"{act.name}>{','.join(map(str, places))}"]

    async def saga(self, ctx: TaskContext, act: Saga, undo: bool) -> list[str]:
        broken = False
        words: list[str] = []
        try:
            async with ctx.saga():
                words = await self.block(ctx, act.block, undo=True)
                if act.breaks:
                    # Suspended meanwhile: whoever goes on has what is to be undone from the history.
                    await ctx.sleep(f"{act.name}z", 0.15)
                    raise Broken(act.name)
        except Broken:
            broken = True
        await self.enter(ctx, act.name, act.amount if broken else -act.amount)
        return [f"{act.name}!broken"] if broken else words

    async def child(self, ctx: TaskContext, act: Child) -> str:
        name = child_id(id_of(ctx.execution_id, ctx.data), act.name)
        task = task_of(act.program)
        if act.detached:
            await ctx.start_child(act.name, task, act.program, name)
            return act.name
        try:
            await ctx.run_child(act.name, task, act.program, name)
        except ExecutionFailed:
            return f"{act.name}:failed"
        return f"{act.name}:completed"

    # --- bodies -----------------------------------------------------------------------------------------------------

    async def work(self, act: Step) -> Receipt:
        self.note("begin")
        try:
            await asyncio.sleep(HOUR if act.ending == "overruns" else act.ms / 1_000)
        except asyncio.CancelledError:
            self.note("left")
            raise
        return self.finish(act)

    def work_in_thread(self, act: Step) -> Receipt:
        self.note("begin")
        time.sleep(act.ms / 1_000)
        return self.finish(act)

    def finish(self, act: Step) -> Receipt:
        info = context()
        self.note("end")
        if act.ending == "raises" or info.current_attempt < act.failures:
            raise Broken(act.name)
        return Receipt(act.name, self.nonce(), "x" * act.size)

    async def linger(self, race: str) -> Receipt:
        """A loser. It goes on until it is cancelled for having lost; what runs in an execution that was cancelled may finish."""
        self.note("begin")
        gate = self.place.gate(cancelled(id_of(context().execution_id, context().data)))
        try:
            while not gate.exists():
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.note("left")
            raise
        self.note("end")
        return Receipt(race, self.nonce())

    async def beat(self, act: Beat) -> Receipt:
        """As far as it was told to be, each attempt goes on from where the one before was."""
        self.note("begin")
        info = context()
        at: int = info.heartbeat_details or 0
        name = id_of(info.execution_id, info.data)
        self.place.write("felt", name, info.step_name, info.current_attempt, at)
        while at < (act.fails if info.current_attempt == 0 else act.count):
            at += 1
            info.heartbeat(at)
            await asyncio.sleep(0.01)
        return self.finish(Step(act.name, failures=1))

    async def item(self, number: int) -> int:
        self.note("begin")
        await asyncio.sleep(0.005)
        self.note("end")
        return number

    async def undo(self, receipt: Receipt) -> None:
        self.place.write("undo", id_of(context().execution_id, context().data), receipt.step, receipt.nonce)
        await asyncio.sleep(0.002)

    def book(self, db: sqlite3.Connection, act: Transaction) -> str:
        self.note("begin")
        info = context()
        db.execute(_INSERT.format("?, ?, ?"), (id_of(info.execution_id, info.data), act.name, act.amount))
        return self.booked(act)

    async def book_on_server(self, connection: Any, act: Transaction) -> str:
        self.note("begin")
        info = context()
        name = id_of(info.execution_id, info.data)
        await connection.execute(_INSERT.format("$1, $2, $3"), name, act.name, act.amount)
        return self.booked(act)

    def booked(self, act: Transaction) -> str:
        self.note("end")
        if act.ending == "raises" or context().current_attempt < act.failures:
            raise Broken(act.name)
        return self.nonce()

    # --- ledger -----------------------------------------------------------------------------------------------------

    def note(self, word: str) -> None:
        info = context()
        self.place.write(word, id_of(info.execution_id, info.data), info.step_name, info.current_attempt)

    def write(self, ctx: TaskContext, word: str, *words: object) -> None:
        self.place.write(word, id_of(ctx.execution_id, ctx.data), *words)

    def nonce(self) -> str:
        return f"{os.getpid()}-{time.monotonic_ns()}"


class Again(Interpreter):
    """The same, run again when it fails."""

    name = "verified-again"
    max_retries = 1


class Timed(Interpreter):
    """The same, with a deadline."""

    name = "verified-timed"
    timeout = DEADLINE


def handlers(place: Place, *, deployed: bool) -> list[Interpreter]:
    """What a worker has registered: after the deployment a new version of each beside the old one, which has been patched."""
    found: list[Interpreter] = []
    for kind in (Interpreter, Again, Timed):
        found.append(kind(place, deployed=deployed))
        if deployed:
            found.append(
                type(f"New{kind.__name__}", (kind,), {"version": "2", "__module__": __name__})(place, deployed=True)
            )
    return found


def cancelled(execution_id: str) -> str:
    """The gate that is opened when an execution has been cancelled, in the middle of a race perhaps."""
    return f"cancelled-{execution_id.replace('/', '_')}"


def task_of(program: Program) -> str:
    """Who interprets a program."""
    return {"again": "verified-again", "expires": "verified-timed"}.get(program.ending, "verified")
