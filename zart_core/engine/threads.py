"""Threads for plain step functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Task = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Threads(Executor):
    """At most ``limit`` daemon threads, begun when they are needed.

    Python's own pool joins its threads when the interpreter exits, so that one that never returns keeps a drained worker's
    process alive for ever. These end with the process.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in a thread, once one is free. Raises ``RuntimeError`` after :meth:`shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads for steps have been shut down")
            self._tasks.put((future, fn, args, kwargs))
            if self._idle > 0:
                self._idle -= 1  # spoken for: it will take this task, or one before it
            elif len(self._threads) < self._limit:
                name = f"zart-step_{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end after what they do now; with ``cancel_futures`` what has not begun is cancelled."""
        with self._lock:
            self._closed = True
            waiting: list[_Task] = []
            while not self._tasks.empty():
                task = self._tasks.get()
                if task is not None:
                    waiting.append(task)
            for task in waiting:
                if cancel_futures:
                    task[0].cancel()
                else:
                    self._tasks.put(task)
            for _ in self._threads:
                self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    @property
    def alive(self) -> bool:
        """Whether any of the threads has not ended."""
        return any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, fn, args, kwargs = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, fn, args, kwargs  # a thread that waits keeps nothing alive
            with self._lock:
                self._idle += 1
