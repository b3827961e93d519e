"""The threads for plain step functions."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from zart_core.engine.threads import Threads


def test_no_more_threads_than_allowed_run_and_all_work_is_done() -> None:
    threads = Threads(3)
    running, most = 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return number

    futures = [threads.submit(work, number) for number in range(500)]
    assert [future.result(10) for future in futures] == list(range(500))
    assert 1 <= most <= 3
    threads.shutdown()
    assert not threads.alive


def test_a_free_thread_is_used_again() -> None:
    threads = Threads(50)
    names: set[str] = set()
    for _ in range(30):
        names.add(threads.submit(lambda: threading.current_thread().name).result(10))
        give_up = time.monotonic() + 10
        while not threads._idle and time.monotonic() < give_up:  # it is free a moment after its result is seen
            time.sleep(0.0005)
    assert names == {"zart-step_0"}
    threads.shutdown()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_function_raises_comes_back_and_its_thread_lives_on(error: BaseException) -> None:
    threads = Threads(1)

    def fail() -> None:
        raise error

    assert threads.submit(fail).exception(10) is error
    assert threads.submit(lambda: "next").result(10) == "next"
    threads.shutdown()


def test_a_shutdown_cancels_what_has_not_begun_and_refuses_more() -> None:
    threads = Threads(1)
    began, go = threading.Event(), threading.Event()

    def hold() -> str:
        began.set()
        go.wait(10)
        return "held"

    first = threads.submit(hold)
    began.wait(10)
    second = threads.submit(lambda: "never")
    threads.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(lambda: "never")
    go.set()
    assert first.result(10) == "held"


def test_a_thread_that_never_returns_does_not_keep_its_process_alive() -> None:  # B59
    program = """
import threading
from zart_core.engine.threads import Threads
began = threading.Event()
Threads(1).submit(lambda: (began.set(), threading.Event().wait()))
began.wait()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
