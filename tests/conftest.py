"""How tests run: an ``async def`` test gets an event loop of its own, and what it leaves behind fails it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings

TIME_LIMIT = 90.0
_LONG: Final = ("verification", "chaos", "examples", "simulation", "crashes")
"""Folders whose tests take seconds, most of them waiting for processes: begun first, so that no test process is left alone with one."""
TO_END: Final = 5.0
"""Seconds for a thread that was let go to come to its end."""
SOAK_LIMIT = 450.0
"""Of the long tests, which go on beside others on a busy machine."""
# The same examples in every run of the suite, others and more of them in the long tests. How long one takes says how busy the machine is.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("ZART_TEST_EXAMPLES", "suite"))


# Thousands of tests are made and all of them stay: to look among them for garbage is half of the time that making them takes.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage; what is here stays, and is not looked at again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first; otherwise in the order of the tree."""
    here = Path(__file__).parent
    folders = {folder: number for number, folder in enumerate(_LONG)}
    items.sort(key=lambda item: folders.get(item.path.relative_to(here).parts[0], len(folders)))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests; a fixture that is an async context manager is entered around the test."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    before = set(threading.enumerate())
    limit = TIME_LIMIT if pyfuncitem.get_closest_marker("soak") is None else SOAK_LIMIT
    asyncio.run(_run(pyfuncitem.obj, arguments, limit))
    new = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("zart")]
    for thread in new:
        # Nobody waits for a thread whose function outlasts its worker: the test has let it go on, and here it ends.
        thread.join(TO_END)
    left = [thread.name for thread in new if thread.is_alive()]
    assert not left, f"the test left threads behind: {left}"
    return True


async def _run(test: Any, arguments: dict[str, Any], limit: float) -> None:
    managers = [value for value in arguments.values() if getattr(value, "enter_around_test", False)]
    async with asyncio.timeout(limit):
        await _within(managers, test, arguments)
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"the test left tasks behind: {left}"


async def _within(managers: list[Any], test: Any, arguments: dict[str, Any]) -> None:
    if not managers:
        await test(**arguments)
        return
    async with managers[0]:
        await _within(managers[1:], test, arguments)
