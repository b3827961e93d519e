"""One verification from its beginning to its report."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE
from tests.chaos.storm import Weather
from tests.chaos.weather import Crashes, Lightning
from tests.verification.check import entered, everything, findings, make_ledger
from tests.verification.crowd import most_at_once
from tests.verification.driver import Driver, Restless
from tests.verification.finding import Finding
from tests.verification.killer import Killer
from tests.verification.ledger import Account
from tests.verification.report import Report
from tests.verification.watchdog import Stuck, dump, watch
from zart_core import DurableScheduler, connect

PATIENCE: Final = 40.0
"""Seconds without a word in the ledger after which a program counts as stuck: many leases, and no sleep is that long."""


async def verify(
    place: Place,
    *,
    seed: int,
    seconds: float,
    workers: int = 2,
    at_once: int = 12,
    crash: Callable[[], None] | None = None,
    calm: float = 1.0,
    patience: float = PATIENCE,
    at_least: int = 0,
) -> Report:
    """Programs of this seed for so many seconds on the fresh store of ``place``; then all ends, and is compared with what was told.

    ``crash``: what crashes the store's server, if that is ours to crash. ``calm``: a worker is left in peace for about so many seconds.
    ``at_least``: so many programs are begun, if that takes no more than four times as long.
    """
    began = time.monotonic()
    await make_ledger(place)
    blows: Counter[str] = Counter()

    @contextlib.contextmanager
    def noted(what: str) -> Iterator[None]:
        place.ledger.write(f"blow {what}")
        blows[what] += 1
        try:
            yield
        finally:
            # It has struck some time between the two lines.
            place.ledger.write(f"blown {what}")

    weather: list[Weather] = []
    if STORE != "sqlite":
        weather.append(Lightning(place.url, note=lambda: noted("connections ended")))
    if crash is not None:
        weather.append(Crashes(noted("server crashes")(crash), pause=(4.0, 12.0)))
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        driver = Driver(place, client, seed=seed, seconds=seconds, at_once=at_once, programs=at_least)
        killer = Killer(place, seed=seed, workers=workers, weather=weather, calm=calm, deploys_after=seconds / 2)
        file = place.folder / "stuck.txt"
        stuck = await _all_of_it(driver, killer, watch(driver, killer, scheduler, patience, file))
        if stuck is not None and not file.exists():
            names = [name for name, execution in (await everything(client)).items() if execution.finished_at is None]
            file.write_text(await dump(driver, killer, scheduler, names))
        account = Account(place.ledger.entries())
        found = [Finding("wrong", text) for text in (*driver.findings, *killer.findings, *_complaints(killer))]
        if stuck is None:
            found += [
                *account.findings(driver.told),
                *await findings(place, scheduler, driver.told, driver.archive, account),
            ]
        rows = await entered(place)
        crowd = most_at_once(account, driver.told)
    return Report(
        seed=seed,
        store=STORE,
        seconds=time.monotonic() - began,
        workers=workers,
        programs=driver.done["programs"],
        executions=len(driver.archive.entries),
        steps=len(account.begins),
        bodies=sum(map(len, account.begins.values())),
        rows=sum(len(amounts) for steps in rows.values() for amounts in steps.values()),
        done=dict(driver.done + killer.done + blows),
        crowd=crowd,
        failovers=account.failovers,
        repeats=dict(account.repeats),
        findings=found,
        stuck=stuck,
    )


async def _all_of_it(driver: Driver, killer: Killer, watching: Coroutine[Any, Any, None]) -> str | None:
    """Drive and kill, and see whether anything is stuck."""
    raging = asyncio.create_task(killer.rage())
    watcher = asyncio.create_task(watching)
    driving = asyncio.create_task(driver.drive())
    tasks = [raging, watcher, driving]
    try:
        begun = asyncio.create_task(driver.begun.wait())
        begun.add_done_callback(lambda _: killer.over.set())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if driving.done():
            watcher.cancel()
            driving.result()
            killer.close()
            await raging
        for task in (raging, watcher):
            if task.done() and not task.cancelled():
                task.result()
    except (Stuck, Restless) as error:
        return f"{error}"
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
    return None


_ALLOWED: Final = (
    "has lost its lease",
    "a worker has died",
    "the event loop has been blocked",
    # Losers that go on until their race is decided, which a worker that is drained does not do any more.
    "did not come to a stop in time",
    # A branch has heard of the cancellation while another one was in a step.
    "a pass through its handler has ended before",
    # Of workers that were cut off from their store, whose calls fail or whose connections end.
    "failed, it will be repeated",
    "could not register, it will be repeated",
    "listening for notifications failed, polling goes on",
    "heartbeat failed",
    "could not be deregistered, its lease will run out",
    "its lease ran out before it was drained",
    "signals failed, it will be repeated",
    "sweeping failed, it will be repeated",
)


def _complaints(killer: Killer) -> list[str]:
    """Lines of the workers' logs, of level ERROR and above, or tracebacks, that nothing explains."""
    return [
        f"worker {process.pid} said: {line[:300]}"
        for process in killer.crew
        if process.pid not in killer.stillborn
        for line in process.said.splitlines()
        if (" WARNING " in line or " ERROR " in line or line.startswith("Traceback"))
        and not any(words in line for words in _ALLOWED)
    ]
