"""Programs that tests run as processes of their own, and how a test holds one.

    python -m tests.behaviour.programs worker FOLDER CONFIG      a worker until it is told to stop; CONFIG: WorkerConfig as JSON
    python -m tests.behaviour.programs starter FOLDER PREFIX     starts executions for ever, prints each acknowledged id
    python -m tests.behaviour.programs seller FOLDER PREFIX      stores orders and starts executions in its own transactions, and
                                                                 pays for them with an event, for ever; prints each paid one's id
    python -m tests.behaviour.programs crowd FOLDER COUNT        that many processes open one file at the same moment
    python -m tests.behaviour.programs doomed FOLDER CASES       a worker process for each case (``METHOD-MOMENT-NUMBER``, by spaces),
                                                                 which dies in that call; CASE is also its queue and its execution

FOLDER holds the store (``zart.db``, or the URL of a database on a server), the ledger and the gates. A gate is a file that a step waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.behaviour.world import REPLAY, STORE, Ledger, url_of
from tests.orphans import end_with_parent
from zart_core import (
    DurableScheduler,
    Scheduler,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    connect,
    context,
)
from zart_core.records import StepKey, StepRow
from zart_core.testing.faults import FaultPlan, FaultyScheduler, crash, lose_lease

ROOT = Path(__file__).parents[2]


# --- handlers ---------------------------------------------------------------------------------------------------------


class Place:
    """The folder that processes share: the ledger and the gates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = url_of(folder)
        self.ledger = Ledger(folder / "ledger")

    def write(self, *words: object) -> None:
        """A line of the ledger, signed with the process's id."""
        self.ledger.write(" ".join(map(str, (*words, os.getpid()))))

    def lines(self, *words: object) -> list[str]:
        """The ledger's lines that begin with ``words``."""
        return [line for line in self.ledger.entries() if line.split()[: len(words)] == [str(word) for word in words]]

    def gate(self, name: object) -> Path:
        return self.folder / f"gate-{name}"

    def open_gate(self, name: object) -> None:
        self.gate(name).touch()


class Counted(TaskHandler[int, int]):
    """``data`` steps; each leaves a line ``step ID N PID``."""

    name = "counted"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: int) -> int:
        total = 0
        for number in range(data):
            total += await ctx.step(f"step-{number}", self.count, number)
        return total

    async def count(self, number: int) -> int:
        self.place.write("step", context().execution_id, number)
        await asyncio.sleep(0.002)
        return number


class Brood(TaskHandler[int, int]):
    """``data`` children at once, each :class:`Counted` with two steps; their ids are this one's with a number."""

    name = "brood"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: int) -> int:
        own = ctx.execution_id
        children = (ctx.run_child(f"child-{n}", "counted", 2, f"{own}-{n}") for n in range(data))
        return sum(await asyncio.gather(*children))


class Spread(TaskHandler[int, int]):
    """``data`` parallel steps for any worker, a few beside the handler, then a bounded map; each leaves a line ``step ID N PID``.

    A line ``enter ID N`` and ``leave ID N`` around each step of the map tells how many were at work at once.
    """

    name = "spread"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: int) -> int:
        handles = [ctx.schedule(f"far-{n}", self.count, n) for n in range(data)]
        handles += [ctx.schedule(f"near-{n}", lambda n=n: self.count(data + n)) for n in range(5)]
        total = sum(await ctx.wait_all(handles))
        return total + sum(await ctx.map("few", range(data), self.count_few, concurrency=3))

    async def count(self, number: int) -> int:
        self.place.write("step", context().execution_id, number)
        await asyncio.sleep(0.02)
        return 1

    async def count_few(self, number: int) -> int:
        self.place.write("enter", context().execution_id, number)
        await asyncio.sleep(0.02)
        self.place.write("leave", context().execution_id, number)
        return 1


class Retreat(TaskHandler[int, int]):
    """``data`` steps and then a failure that takes them back; leaves lines ``step ID N PID`` and ``undo ID N PID``."""

    name = "retreat"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: int) -> int:
        async with ctx.saga():
            for number in range(data):
                await ctx.step(f"step-{number}", self.leave, "step", number, undo=self.take_back)
            raise RuntimeError("no further")

    async def take_back(self, number: int) -> None:
        await self.leave("undo", number)

    async def leave(self, word: str, number: int) -> int:
        self.place.write(word, context().execution_id, number)
        await asyncio.sleep(0.002)
        return number


class Metered(TaskHandler[str, None]):
    """Writes ``enter KEY ID PID`` and ``leave KEY ID PID`` around a moment of work; ``data`` is the key."""

    name = "metered"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: str) -> None:
        await ctx.step("work", self.work, f"{data} {ctx.execution_id}")

    async def work(self, whose: str) -> None:
        self.place.ledger.write(f"enter {whose} {os.getpid()}")
        await asyncio.sleep(0.02)
        self.place.ledger.write(f"leave {whose} {os.getpid()}")


class Gated(TaskHandler[None, int]):
    """A step that waits for the gate of its execution (``ID``) or of its process (``ID-PID``), between two quick ones."""

    name = "gated"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: None) -> int:
        await ctx.step("before", self.note, "before")
        try:
            pid = await ctx.step("hold", self.hold)
            await ctx.publish("pid", pid)
        finally:
            self.place.write("left", ctx.execution_id)
        await ctx.step("after", self.note, "after")
        return pid

    async def note(self, word: str) -> None:
        self.place.write(word, context().execution_id)

    async def hold(self) -> int:
        execution_id, pid = context().execution_id, os.getpid()
        self.place.write("begin", execution_id)
        gates = self.place.gate(execution_id), self.place.gate(f"{execution_id}-{pid}")
        await until(lambda: any(gate.exists() for gate in gates), seconds=600)
        self.place.write("end", execution_id)
        return pid


class Stuck(Gated):
    """The same, but the step is a plain function in a thread, which nothing can stop."""

    name = "stuck"

    async def run(self, ctx: TaskContext, data: None) -> int:
        await ctx.step("hold", self.hold_thread)
        return os.getpid()

    def hold_thread(self) -> None:
        execution_id, pid = context().execution_id, os.getpid()
        self.place.write("begin", execution_id)
        gates = self.place.gate(execution_id), self.place.gate(f"{execution_id}-{pid}")
        while not any(gate.exists() for gate in gates):
            time.sleep(0.01)
        self.place.write("end", execution_id)


class Waiting(TaskHandler[None, str]):
    """Waits for the event ``go``, then runs a step."""

    name = "waiting"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: None) -> str:
        self.place.write("waits", ctx.execution_id)
        word = await ctx.wait_for_event("go", str)
        await ctx.step("after", self.note)
        return word

    async def note(self) -> None:
        self.place.write("after", context().execution_id)


class Napping(TaskHandler[float, None]):
    """Sleeps ``data`` seconds, then runs a step."""

    name = "napping"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: float) -> None:
        self.place.write("naps", ctx.execution_id)
        await ctx.sleep("nap", data)
        await ctx.step("after", self.note)

    async def note(self) -> None:
        self.place.write("after", context().execution_id)


class Blocking(Gated):
    """The same, but in the process whose id is in the file ``gate-block`` it blocks the event loop for the seconds that are there too."""

    name = "blocking"

    async def hold(self) -> int:
        execution_id, pid = context().execution_id, os.getpid()
        self.place.write("begin", execution_id)
        blocked, seconds = self.place.gate("block").read_text().split()
        if pid == int(blocked):
            time.sleep(float(seconds))
        self.place.write("end", execution_id)
        return pid


class Act(Struct, frozen=True):
    """One act of a mixed program: ``step`` (fails ``failures`` times first), ``pair`` (two side by side), ``fan`` (two that
    any worker may run, and one beside the handler), ``sleep`` or ``event``; ``length`` is in milliseconds."""

    kind: str
    length: int = 0
    failures: int = 0


class Mixed(TaskHandler[list[Act], int]):
    """A program given as data. Its output is the number of its steps plus the sum of what its events said.

    The ledger tells its life: ``begin ID STEP ATTEMPT`` and ``end …`` in a body, ``got ID CALL VALUE`` when the handler was given the
    result of a call (again on each replay), ``lay ID CALL TIME`` and ``woke ID CALL TIME`` around a sleep.
    """

    name = "mixed"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: list[Act]) -> int:
        total = 0
        for number, act in enumerate(data):
            match act.kind:
                case "sleep":
                    self.place.write("lay", ctx.execution_id, number, _micros())
                    await ctx.sleep(f"{number}", act.length / 1_000)
                    self.place.write("woke", ctx.execution_id, number, _micros())
                case "event":
                    word = await ctx.wait_for_event("tick", int)
                    self.place.write("got", ctx.execution_id, number, word)
                    total += word
                case "pair":
                    await asyncio.gather(*(self.step(ctx, f"{number}{side}", act) for side in "lr"))
                    total += 2
                case "fan":
                    total += await self.fan(ctx, number, act)
                case _:
                    await self.step(ctx, f"{number}", act)
                    total += 1
        return total

    async def fan(self, ctx: TaskContext, number: int, act: Act) -> int:
        retry = f"fixed({act.failures}, 20ms)"
        handles = [ctx.schedule(f"{number}{side}", self.work, act, retry=retry) for side in "lr"]
        handles.append(ctx.schedule(f"{number}o", lambda: self.work(act), retry=retry))
        for handle, token in zip(handles, await ctx.wait_all(handles), strict=True):
            self.place.write("got", ctx.execution_id, handle.name, token)
        return len(handles)

    async def step(self, ctx: TaskContext, name: str, act: Act) -> None:
        token = await ctx.step(name, self.work, act, retry=f"fixed({act.failures}, 20ms)")
        self.place.write("got", ctx.execution_id, name, token)

    async def work(self, act: Act) -> str:
        """Returns a token that no other run of it would return."""
        info = context()
        self.place.write("begin", info.execution_id, info.step_name, info.current_attempt)
        await asyncio.sleep(act.length / 1_000)
        self.place.write("end", info.execution_id, info.step_name, info.current_attempt)
        if info.current_attempt < act.failures:
            raise ConnectionError("not yet")
        return f"{os.getpid()}-{time.monotonic_ns()}"


class Chore(TaskHandler[int, int]):
    """``data`` steps, the first two in a saga; two for any worker, a short sleep, and a step that fails in the first run until the gate
    ``mend-ID`` is open. Its output is the number of its steps.

    Lines ``begin ID RUN STEP TIME PID`` and ``end ID RUN STEP TIME PID`` in each body, ``undo ID RUN STEP TIME PID``, and
    ``leave ID RUN PID`` at its end.
    """

    name = "chore"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: int) -> int:
        total, here = 0, (ctx.execution_id, ctx.run)
        async with ctx.saga():
            for number in range(2):
                total += await ctx.step(f"s{number}", self.work, *here, f"s{number}", undo=self.undo)
            await ctx.sleep("rest", 0.05)
        parts = [ctx.schedule(f"p{number}", self.work, *here, f"p{number}") for number in range(2)]
        total += sum(await ctx.wait_all(parts))
        total += await ctx.step("shaky", self.shaky, *here)
        for number in range(2, data):
            total += await ctx.step(f"s{number}", self.work, *here, f"s{number}")
        self.place.write("leave", *here)
        return total

    async def work(self, execution_id: str, run: int, step: str) -> int:
        self.place.write("begin", execution_id, run, step, _micros())
        await asyncio.sleep(0.03)
        self.place.write("end", execution_id, run, step, _micros())
        return 1

    async def shaky(self, execution_id: str, run: int) -> int:
        if run == 1 and not self.place.gate(f"mend-{execution_id}").exists():
            raise ConnectionError("not mended yet")
        return await self.work(execution_id, run, "shaky")

    async def undo(self) -> None:
        self.place.write("undo", context().execution_id, context().step_name, _micros())


class Booking(TaskHandler[int, list[int]]):
    """``data`` transactions ``book-N``, each a row of the table ``bookings``, whose rowid it returns; a step after each.

    The process that finds the gate ``die-ID-N`` kills itself between the row and the commit. The table is made by the test.
    """

    name = "booking"

    def __init__(self, place: Place) -> None:
        self.place = place

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        rows: list[int] = []
        for number in range(data):
            book = self.book if STORE == "sqlite" else self.book_on_server
            rows.append(await ctx.transaction(f"book-{number}", book, number))
            await ctx.step(f"tell-{number}", self.tell, number)
        return rows

    def book(self, db: sqlite3.Connection, number: int) -> int:
        execution_id = context().execution_id
        row = db.execute("INSERT INTO bookings (execution, number) VALUES (?, ?)", (execution_id, number)).lastrowid
        self.die_at(f"die-{execution_id}-{number}")
        return row or 0

    async def book_on_server(self, connection: Any, number: int) -> int:
        execution_id = context().execution_id
        insert = "INSERT INTO bookings (execution, number) VALUES ($1, $2) RETURNING id"
        row: int = await connection.fetchval(insert, execution_id, number)
        self.die_at(f"die-{execution_id}-{number}")
        return row

    def die_at(self, name: str) -> None:
        gate = self.place.gate(name)
        if gate.exists():
            gate.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    async def tell(self, number: int) -> None:
        self.place.write("told", context().execution_id, number)


def _micros() -> int:
    return time.time_ns() // 1_000


def registry(place: Place) -> TaskRegistry:
    """Every handler of this module."""
    tasks = TaskRegistry()
    for handler in (
        Counted,
        Brood,
        Spread,
        Retreat,
        Gated,
        Stuck,
        Blocking,
        Waiting,
        Napping,
        Mixed,
        Chore,
        Booking,
        Metered,
    ):
        tasks.register(handler(place))
    return tasks


# --- programs ---------------------------------------------------------------------------------------------------------


async def work(place: Place, config: str) -> None:
    """A worker as a process of its own."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    worker = Worker(connect(place.url), registry(place), WorkerConfig(**json.loads(config)))
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.tenure is not None or running.done())
    if not running.done():
        print("ready", flush=True)
    await running


async def start_for_ever(place: Place, prefix: str) -> None:
    """Many starts under way at any moment; each id is printed once its start has returned."""
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)

        async def part(number: int) -> None:
            count = 0
            while True:
                handle = await client.start("counted", 1, execution_id=f"{prefix}-{number}-{count}")
                # One write, so that a kill leaves a line whole or, at the very end, cut short.
                os.write(1, f"{handle.execution_id}\n".encode())
                count += 1

        await asyncio.gather(*(part(number) for number in range(20)))


async def sell_for_ever(place: Place, prefix: str) -> None:
    """An order and its execution in one transaction, its payment and its event in the next. The tables are made by the test.

    Kills itself between the writes and the commit of order, or payment, number N where it finds the gate ``die-PREFIX-N``.
    """

    def die_at(number: int, paying: bool) -> None:
        gate = place.gate(f"die-{prefix}-{number}")
        if gate.exists() and paying == (prefix == "payment"):
            os.kill(os.getpid(), signal.SIGKILL)

    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        async with _transactions(place) as (connection, transaction):
            for number in itertools.count():
                name = f"{prefix}-{number}"
                async with transaction() as write:
                    await write(f"INSERT INTO orders (execution) VALUES ('{name}')")
                    await client.start("waiting", None, execution_id=name, tx=connection)
                    die_at(number, paying=False)
                async with transaction() as write:
                    await write(f"UPDATE orders SET paid = 1 WHERE execution = '{name}'")
                    await client.offer_event(name, "go", "paid", tx=connection)
                    die_at(number, paying=True)
                os.write(1, f"{name}\n".encode())


@asynccontextmanager
async def _transactions(place: Place) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """A connection of one's own to the store's database, and what begins and ends a transaction on it."""
    if STORE == "sqlite":
        with contextlib.closing(sqlite3.connect(place.folder / "zart.db", timeout=30)) as db:

            @asynccontextmanager
            async def in_file() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
                async def write(statement: str) -> None:
                    db.execute(statement)

                with db:
                    yield write

            yield db, in_file
        return
    import asyncpg

    connection: Any = await asyncpg.connect(place.url)
    try:

        @asynccontextmanager
        async def on_server() -> AsyncIterator[Callable[[str], Awaitable[None]]]:
            async with connection.transaction():
                yield connection.execute

        yield connection, on_server
    finally:
        await connection.close()


def fork(work: Callable[[], Coroutine[Any, Any, None]], ready: Callable[[], None]) -> int:
    """A child process that is ``ready`` and then does ``work``; its id. What it raises is printed, and makes its exit code 1."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            end_with_parent()
            ready()
            asyncio.run(work())
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """The exit code of a child, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def open_at_once(place: Place, count: int) -> int:
    """``count`` processes that open the store when the last of them is there. How many failed."""
    held, starting = os.pipe()

    def ready() -> None:
        os.close(starting)
        os.read(held, 1)  # returns when the parent, the only writer left, closes its end

    children = [fork(lambda: _open(place), ready) for _ in range(count)]
    os.close(starting)
    return sum(ended(child) != 0 for child in children)


async def _open(place: Place) -> None:
    async with connect(place.url) as scheduler:
        await scheduler.migrate()
        await DurableScheduler(scheduler).start("counted", 1, execution_id="same")


def doom(place: Place, cases: list[str]) -> int:
    """A worker process for each case, all at once. Prints ``CASE CODE PID`` as each has ended; a killed one is noted in the ledger."""
    children = {fork(partial(_die, place, case), lambda: None): case for case in cases}
    for child, case in children.items():
        code = ended(child)
        if code == -signal.SIGKILL:
            place.ledger.write(f"kill {child}")
        print(case, code, child, flush=True)
    return 0


async def _die(place: Place, case: str) -> None:
    """Work on the execution ``case`` until it has finished, unless the process dies before."""
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(message)s")
    options: dict[str, Any] = {"lease": "3s", "linger": "50ms", "poll_interval": "100ms", "replay": REPLAY}
    config = WorkerConfig(queues=(case,), **options)
    async with connect(place.url) as scheduler, Worker(_doomed(scheduler, case), registry(place), config):
        await DurableScheduler(scheduler).wait(case)


def _doomed(scheduler: Scheduler, case: str) -> FaultyScheduler:
    method, moment, number = case.split("-")
    if method == "transact":
        return DeadlyTransaction(scheduler, int(number), moment)
    # Or in one of the next, where the lease was lost in this and it had no effect: so many processes at once may stand still for that long.
    calls = range(int(number), int(number) + 10)
    plan = FaultPlan(crash(method, calls=calls, moment="before" if moment == "before" else "after"))
    return FaultyScheduler(scheduler, plan)


class DeadlyTransaction(FaultyScheduler):
    """Kills its process beside transaction ``number`` of a :class:`Booking`, counted from 1: ``before`` its call, or ``after`` its
    commit. ``late`` is after the commit too, but the lease is lost before the first call, which is refused for it.

    The transaction and not the call is counted. A worker whose lease is lost makes the call once more in its next life, and so does one
    whose call did not reach the store; on a machine with much to do both happen by themselves.
    """

    def __init__(self, scheduler: Scheduler, number: int, moment: str) -> None:
        super().__init__(scheduler, FaultPlan(*([lose_lease("transact", calls=[number])] if moment == "late" else [])))
        self._name = f"book-{number - 1}"
        self._moment = moment

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        if (key.name, self._moment) == (self._name, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        row = await super().transact(key, work)
        if key.name == self._name and row is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return row


# --- how a test holds a process ---------------------------------------------------------------------------------------


async def until(condition: Callable[[], Any | Awaitable[Any]], *, seconds: float = 20.0) -> float:
    """Return, with the seconds it took, when ``condition`` (plain or async) holds; fail after ``seconds``."""
    began = time.monotonic()
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise AssertionError(f"it did not happen within {seconds:g} s")
        await asyncio.sleep(0.01)


class Process:
    """One program under way. What it says on stderr is kept for the test to read."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.pid = process.pid

    @property
    def said(self) -> str:
        """Its log so far."""
        return self._errors.read_text()

    @property
    def runs(self) -> bool:
        """Whether any of its threads may run: not so once it is stopped, or has ended."""
        try:
            return any(state_of(thread) not in "TZX" for thread in Path(f"/proc/{self.pid}/task").iterdir())
        except FileNotFoundError:
            return False

    async def line(self) -> str:
        """The next line of its output; empty at the end."""
        if self._process.stdout is None:
            raise RuntimeError("its output is not read")
        async with asyncio.timeout(60):
            return (await self._process.stdout.readline()).decode()

    async def rest(self) -> str:
        """What else it put out until its end."""
        if self._process.stdout is None:
            raise RuntimeError("its output is not read")
        return (await self._process.stdout.read()).decode()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, seconds: float = 20.0) -> int:
        """Its exit code; negative for the signal that killed it."""
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def kill(self) -> None:
        """kill -9; a process that has ended already is left alone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.communicate()


def state_of(thread: Path) -> str:
    """One letter for what a thread, or a process, of ``/proc`` does; one that is gone is dead."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


async def audited(scheduler: Any) -> list[str]:
    """What the audit of the tables finds; it is not part of the contract."""
    return list(await scheduler.audit())


_count = iter(range(1_000_000))


async def launch(place: Place, program: str, *arguments: object) -> Process:
    """Start a program; whoever starts it kills it in the end."""
    errors = place.folder / f"stderr-{next(_count)}"
    with errors.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.behaviour.programs",
            program,
            str(place.folder),
            *map(str, arguments),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=sink,
        )
    return Process(process, errors)


async def launch_worker(place: Place, **config: Any) -> Process:
    """A worker process that has registered; ``config`` are fields of ``WorkerConfig``."""
    options = {"linger": "50ms", "poll_interval": "200ms", "drain_timeout": "5s", "replay": REPLAY, **config}
    process = await launch(place, "worker", json.dumps(options))
    try:
        assert await process.line() == "ready\n", process.said
    except BaseException:
        await process.kill()
        raise
    return process


async def freeze(process: Process, place: Place) -> None:
    """Stop a process as SIGSTOP does; on SQLite not while it holds the file's write lock: that would stop everybody."""

    def frozen() -> bool:
        process.send(signal.SIGSTOP)
        # The signal is on its way when the call returns: a lock that is free now could still be taken.
        while process.runs:
            time.sleep(0.001)
        if STORE != "sqlite":
            return True
        with contextlib.closing(sqlite3.connect(place.folder / "zart.db", isolation_level=None, timeout=0.05)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send(signal.SIGCONT)
                return False
            db.execute("ROLLBACK")
        return True

    await until(frozen)


@asynccontextmanager
async def worker_process(place: Place, **config: Any) -> AsyncIterator[Process]:
    """A worker process, killed at the end of the block if it still runs."""
    process = await launch_worker(place, **config)
    try:
        yield process
    finally:
        await process.kill()


def main(program: str, folder: str, argument: str) -> int:
    end_with_parent()
    place = Place(Path(folder))
    if program == "worker":
        asyncio.run(work(place, argument))
    elif program == "starter":
        asyncio.run(start_for_ever(place, argument))
    elif program == "seller":
        asyncio.run(sell_for_ever(place, argument))
    else:
        return open_at_once(place, int(argument)) if program == "crowd" else doom(place, argument.split())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
