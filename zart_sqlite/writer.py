"""The writer: one thread, one connection, every write of this process.

Group commit without a timer: whatever waits when the thread is free goes into one ``BEGIN IMMEDIATE`` … ``COMMIT``. A
lone job has a commit to itself at once; under load one commit carries hundreds. A job is a plain function of the
database, so it can be run again when a neighbour's failure has undone the transaction.

While the thread has nothing to do, an event loop may use the connection in its place, for a commit that is short and
nobody's but its own: see :mod:`zart_sqlite.lone`. One of them at a time has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar

from zart_core.clock import Clock
from zart_core.records import Notification
from zart_sqlite.clock import catch_up
from zart_sqlite.database import BUSY_TIMEOUT_MS, MERGE_AFTER, Database
from zart_sqlite.log_watch import LogWatch
from zart_sqlite.lone import Lone
from zart_sqlite.notices import ANYTHING, Happened, Notices
from zart_sqlite.schema import migrate
from zart_sqlite.turns import Turns

T = TypeVar("T")
A = TypeVar("A")


class _Word(Enum):
    """What is said to the thread besides jobs."""

    LOOK = "somebody listens now"
    STOP = "finish what waits, and end"


logger: Final = logging.getLogger("zart")

_MOST_JOBS: Final = 512  # in one transaction: keeps the first of them from waiting for ever more
_WATCH: Final = 0.05  # seconds between looks for other processes' commits, while anybody listens
_COMPARE: Final = 0.02  # seconds between looks at the time that other processes have shown
_REST: Final = 1.0  # seconds of idleness before the log is copied into the database

# On an event loop nothing is waited for, and the log is not merged: others would have to wait for both.
_ON_LOOP: Final = ("PRAGMA busy_timeout = 0", "PRAGMA wal_autocheckpoint = 0")
_ON_THREAD: Final = (f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}", f"PRAGMA wal_autocheckpoint = {MERGE_AFTER}")


class Transaction:
    """What a job works with: the connection in its transaction, the time, what to tell others after the commit."""

    __slots__ = ("clock", "db", "happened", "overheard", "renewals")

    def __init__(self, db: sqlite3.Connection, clock: Clock, *, overheard: bool) -> None:
        self.db = db
        self.clock = clock
        self.happened = Happened()
        self.overheard = overheard
        """Whether anybody listens: what is only told need not be found out otherwise."""
        self.renewals = 0
        """How many rows were changed only to renew a lease."""


Work = Callable[[Transaction], T]


class Job(Generic[T]):
    """One piece of work and the future of whoever waits for it."""

    __slots__ = ("apart", "bare", "error", "future", "lone", "loop", "result", "work")

    def __init__(
        self, work: Work[T], loop: asyncio.AbstractEventLoop, *, lone: bool | None, apart: bool, bare: bool
    ) -> None:
        self.work = work
        self.loop = loop
        self.lone = lone
        self.apart = apart
        self.bare = bare
        self.future: asyncio.Future[T] = loop.create_future()
        self.result: T | None = None
        self.error: Exception | None = None

    def settle(self) -> None:
        """On the job's own loop: answer whoever still waits."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)  # type: ignore[arg-type]  # a T by now, None included
        else:
            self.future.set_exception(self.error)


class Writer:
    """Runs jobs in its thread, from :meth:`start` to :meth:`stop`."""

    def __init__(self, database: Database, clock: Clock, notices: Notices, turns: Turns) -> None:
        self._database = database
        self._clock = clock
        self._notices = notices
        self._turns = turns
        self._queue: SimpleQueue[Job[Any] | _Word] = SimpleQueue()
        # Makes "not stopping, so enqueue" one act: a job put after the sentinel would never be answered.
        self._gate = threading.Lock()
        self._stopping = False
        self.opened: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name=f"zart-sqlite-writer {database.path}", daemon=True)
        # Whoever has the connection holds this: the thread, or an event loop in its place. What is below is theirs.
        self._in_use = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._lone = Lone()
        self._on_loop = False  # which settings the connection has
        self._merge_at: float | None = None
        self.commits = 0
        self.changes = 0
        """Grows whenever anything but a lease has changed in the file, as far as is known."""
        # Of the thread alone:
        self._version = 0
        self._log = LogWatch(database.path)
        self._look_at = 0.0
        self._compare_at = 0.0

    def start(self) -> None:
        """Open the file in the thread; :attr:`opened` tells how it went."""
        self._thread.start()

    def run(
        self, work: Work[T], *, lone: bool | None = None, apart: bool = False, bare: bool = False
    ) -> asyncio.Future[T]:
        """Have ``work`` done in a transaction. The future resolves after the commit, on the running event loop.

        ``lone``: whether it could have been done by :meth:`run_here`, ``None`` when that tells nothing about what comes next.
        ``apart``: it shares its transaction with nobody, so that no neighbour's failure makes it run twice. ``bare``: it is one statement,
        which is a transaction by itself where nobody shares one with it, and its commit is no work that the log is merged after.
        """
        job = Job(work, asyncio.get_running_loop(), lone=lone, apart=apart, bare=bare)
        with self._gate:
            if self._stopping:
                raise self._database.closed()
            self._queue.put(job)
        self._turns.asked(job.loop)
        return job.future

    def run_here(self, act: Callable[[sqlite3.Connection, A], T | None], argument: A) -> T | None:
        """Do ``act(connection, argument)`` here and now, if that will be quick: one statement of interest to nobody else.

        ``None``: nothing has happened. Then :meth:`run` can do it, or can tell why it fails.
        """
        if not self._in_use.acquire(blocking=False):
            return None
        try:
            db = self._db
            # Stopping or closed; or jobs wait for the thread, which is about to take them: this one had better join them.
            if db is None or self._stopping or not self._lone.quick or not self._queue.empty() or db.in_transaction:
                return None
            began = time.monotonic()
            try:
                self._set(db, on_loop=True)
                result = act(db, argument)
            except Exception:  # another process is writing, say: the thread can wait for it
                self._lone.crowd()
                return None
            if result is None:
                return None
            # What is answered here must have been committed: whatever has left a transaction open, or has begun one.
            if db.in_transaction:
                self._undo(db)
                return None
            ended = time.monotonic()
            self._lone.done(ended - began, on_loop=True)
            self.commits += 1
            self.changes += 1
            if not self._database.in_memory:
                if self._merge_at is None:
                    self._queue.put(_Word.LOOK)  # the thread sleeps without a limit
                self._merge_at = ended + _REST
            return result
        finally:
            self._in_use.release()

    def look_outside(self) -> None:
        """From now on somebody listens: wake the thread from an endless wait."""
        with self._gate:
            if not self._stopping:
                self._queue.put(_Word.LOOK)

    def stop(self) -> None:
        """Finish what waits, close the connection, end the thread; :attr:`ended` tells when. Can be called again."""
        with self._gate:
            if not self._stopping:
                self._stopping = True
                self._queue.put(_Word.STOP)

    def join(self) -> None:
        """Wait for the thread's last instructions, after :attr:`ended`."""
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            db = self._open()
        except BaseException as error:
            self.opened.set_exception(error)
            self.ended.set_result(None)
            return
        self._db = db
        self.opened.set_result(None)
        try:
            self._serve(db)
        finally:
            with self._in_use:
                self._db = None
                # A failing last checkpoint loses nothing: the log stays, and the next to open the file reads it.
                with contextlib.suppress(sqlite3.Error):
                    db.close()
            self._refuse_rest()
            self.ended.set_result(None)

    def _refuse_rest(self) -> None:
        """Nothing comes after the stop, unless the thread ends by a failure: then nobody may wait for ever."""
        with self._gate:
            self._stopping = True
        jobs, _ = self._take(timeout=0)
        for job in jobs:
            job.error = self._database.closed()
        self._answer(jobs, None)

    def _open(self) -> sqlite3.Connection:
        try:
            db = self._database.connect(shared=True)
            try:
                migrate(self._database, db, self._clock.now())
                self._database.patiently(lambda: catch_up(db, self._clock))
                self._version = self._database.patiently(lambda: _data_version(db))
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as error:
            raise self._database.explained(error)  # noqa: B904 - it has its cause
        return db

    def _serve(self, db: sqlite3.Connection) -> None:
        ending = False
        while not ending:
            jobs, ending = self._take(self._patience())
            for shared in _by_transaction(jobs):
                if len(shared) == 1 and shared[0].bare:
                    self._commit_bare(db, shared)
                else:
                    self._commit(db, shared)
            self._look_outside(db)
            self._merge_log(db)

    def _take(self, timeout: float | None) -> tuple[list[Job[Any]], bool]:
        """Everything that waits, and whether that is the end. Waits for the first for ``timeout`` at most."""
        jobs: list[Job[Any]] = []
        while len(jobs) < _MOST_JOBS:
            try:
                job = self._queue.get_nowait() if jobs or timeout == 0 else self._queue.get(timeout=timeout)
            except Empty:
                # An idle process comes by here 20 times a second, which is most of what it uses of the processor: so it turns round early.
                if timeout == _WATCH and not jobs and self._notices.wanted and self._log.unchanged():
                    continue
                break
            if job is _Word.STOP:
                return jobs, True
            if job is _Word.LOOK:
                break
            jobs.append(job)
        return jobs, False

    def _patience(self) -> float | None:
        """How long to wait for jobs before there is something else to do."""
        pauses: list[float] = []
        if self._notices.wanted and not self._database.in_memory:
            pauses.append(_WATCH)
        if self._merge_at is not None:
            pauses.append(max(0.001, self._merge_at - time.monotonic()))
        return min(pauses, default=None)

    # --- one transaction ----------------------------------------------------------------------------------------------

    def _commit(self, db: sqlite3.Connection, jobs: list[Job[Any]]) -> None:
        """One transaction for all jobs; where one of them spoils it, one for each."""
        happened: Happened | None = None
        spoiled = False
        with self._in_use:
            began = time.monotonic()
            try:
                self._set(db, on_loop=False)
                happened = self._transact(db, jobs)
                spoiled = happened is None and len(jobs) > 1
            except Exception as error:
                if not isinstance(error, sqlite3.Error):
                    logger.exception("the SQLite writer failed")
                self._undo(db)
                for job in jobs:
                    job.error = self._explained(error)
            self._note(jobs, began, time.monotonic())
        # The connection is free again before anybody hears of it: their next step may want it at once.
        if spoiled:
            for job in jobs:
                self._commit(db, [job])
        else:
            self._answer(jobs, None if happened is None else happened.notification())

    def _commit_bare(self, db: sqlite3.Connection, jobs: list[Job[Any]]) -> None:
        """A job that is one statement. Idle workers have no other, so it leaves nothing to be looked at that can be known."""
        watched = not self._database.in_memory and self._notices.wanted
        if watched:
            self._look_at = 0.0
            self._look_outside(db)
        [job] = jobs
        with self._in_use:
            try:
                self._set(db, on_loop=False)
                self._undo(db)  # as in _transact
                if not job.future.cancelled():
                    transaction = Transaction(db, self._clock, overheard=False)
                    job.result = self._database.patiently(lambda: job.work(transaction))
                    self.commits += 1
            except Exception as error:
                self._undo(db)
                job.error = self._explained(error)
            if watched:
                self._log.written()
                self._look_at = time.monotonic() + _WATCH
        self._answer(jobs, None)

    def _note(self, jobs: list[Job[Any]], began: float, ended: float) -> None:
        if len(jobs) > 1 or jobs[0].lone is False:
            self._lone.crowd()
        elif jobs[0].lone:
            self._lone.done(ended - began, on_loop=False)
        self._merge_at = None if self._database.in_memory else ended + _REST

    def _set(self, db: sqlite3.Connection, *, on_loop: bool) -> None:
        if self._on_loop is not on_loop:
            self._on_loop = on_loop
            for setting in _ON_LOOP if on_loop else _ON_THREAD:
                db.execute(setting).fetchone()

    def _transact(self, db: sqlite3.Connection, jobs: list[Job[Any]]) -> Happened | None:
        """Run all jobs and commit. ``None`` when one has failed after it had written: then all of it is undone.

        No savepoints: they would cost each job three steps, and a full disk undoes the whole transaction all the same.
        """
        # IMMEDIATE: a transaction that began by reading could not wait for the write lock, it would fail at once
        # (SQLITE_BUSY_SNAPSHOT). Whoever holds the write lock sees the newest state and is alone: that closes every
        # race between the checks of a job and its writes, with other processes as well.
        self._undo(db)  # none is open, and if one were, it would be nobody's
        self._database.patiently(lambda: db.execute("BEGIN IMMEDIATE"))
        now = time.monotonic()
        if now >= self._compare_at or any(job.lone is None for job in jobs):
            # Whoever renews a lease or judges others looks each time. The flushes of a busy worker need not: hundreds a second,
            # and the statement costs as much as a row.
            self._compare_at = now + _COMPARE
            catch_up(db, self._clock)
        transaction = Transaction(db, self._clock, overheard=self._notices.wanted)
        before = db.total_changes
        for job in jobs:
            job.result, job.error = None, None
            if job.future.cancelled():  # nobody waits for it any more, and nothing of it has happened
                continue
            changes = db.total_changes
            try:
                job.result = job.work(transaction)
            except Exception as error:
                job.error = self._explained(error)
                if db.total_changes != changes or not db.in_transaction:
                    self._undo(db)
                    return None
        db.execute("COMMIT")
        if db.in_transaction:
            raise sqlite3.InternalError("the commit has left its transaction open")
        self.commits += 1
        if db.total_changes - before != transaction.renewals:
            self.changes += 1
        return transaction.happened

    def _undo(self, db: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):  # a full disk or an I/O error has undone it already
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _explained(self, error: Exception) -> Exception:
        return self._database.explained(error) if isinstance(error, sqlite3.Error) else error

    def _answer(self, jobs: list[Job[Any]], notification: Notification | None) -> None:
        """Wake each event loop once, with all that concerns it."""
        if notification is None and len(jobs) == 1:
            with contextlib.suppress(RuntimeError):  # as below
                jobs[0].loop.call_soon_threadsafe(self._settle, jobs[0].loop, jobs, None)
            return
        settled: dict[asyncio.AbstractEventLoop, list[Job[Any]]] = {}
        for job in jobs:
            settled.setdefault(job.loop, []).append(job)
        if notification is not None:
            for loop in self._notices.loops():
                settled.setdefault(loop, [])
        for loop, done in settled.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(self._settle, loop, done, notification)

    def _settle(self, loop: asyncio.AbstractEventLoop, jobs: list[Job[Any]], notification: Notification | None) -> None:
        self._turns.answered(loop, len(jobs))
        for job in jobs:
            job.settle()
        if notification is not None:
            self._notices.tell(loop, notification)

    # --- when there is nothing else to do -----------------------------------------------------------------------------

    def _look_outside(self, db: sqlite3.Connection) -> None:
        """Tell listeners when another connection, most likely of another process, has changed the file."""
        now = time.monotonic()
        if now < self._look_at or self._database.in_memory or not self._notices.wanted:
            return
        self._look_at = now + _WATCH
        if not self._log.touched():
            return
        try:
            with self._in_use:
                version = _data_version(db)
        except sqlite3.Error:  # the next job meets it, and somebody waits for that one
            return
        if version != self._version:
            self._version = version
            self.changes += 1
            self._answer([], ANYTHING)

    def _merge_log(self, db: sqlite3.Connection) -> None:
        """After a rest, copy the log into the database, so that readers and the next start find a short one."""
        if self._merge_at is None or time.monotonic() < self._merge_at:
            return
        with self._in_use:
            if time.monotonic() < self._merge_at:  # an event loop has used the connection meanwhile
                return
            self._merge_at = None
            with contextlib.suppress(sqlite3.Error):  # the log stays as it is, and stays valid
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _by_transaction(jobs: list[Job[Any]]) -> list[list[Job[Any]]]:
    """The jobs of each transaction, in order."""
    if not any(job.apart for job in jobs):
        return [jobs] if jobs else []
    batches: list[list[Job[Any]]] = []
    shared: list[Job[Any]] = []
    for job in jobs:
        if job.apart:
            batches += [shared, [job]] if shared else [[job]]
            shared = []
        else:
            shared.append(job)
    return [*batches, shared] if shared else batches


def _data_version(db: sqlite3.Connection) -> int:
    """Changes when another connection commits."""
    version: int = db.execute("PRAGMA data_version").fetchone()[0]
    return version
