"""The workloads. Each measures the limit, then itself, once a repetition, and checks its results when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from benchmarks import backlog, crowded, keys, process, takeover
from benchmarks.bench import CROWD, PATIENCE, Bench, Repetition, Workload, per_second, through, working
from benchmarks.crew import crew
from benchmarks.handlers import Family, Fan, Plain, Replayed, Steps, Waiting, registry
from benchmarks.memory import memory
from benchmarks.raw import postgres_raw, sqlite_raw
from benchmarks.readings import Goal, Reading, percentile
from benchmarks.rest import rest
from benchmarks.store import Store, Wrong, same
from benchmarks.timers import timers
from benchmarks.volume import postgres_volume, sqlite_volume
from zart_core import ExecutionHandle, StartRequest, WorkerConfig
from zart_core.duration import SECOND, positive_micros

_LIMIT_ROWS: Final = 100


# --- throughput -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _jobs(bench: Bench) -> AsyncIterator[Repetition]:
    count, done = bench.sizes.jobs, 0
    async with bench.store("jobs") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            limit = per_second(await bench.limits.commits())
            seconds = await through(store, [StartRequest(Plain, number) for number in range(count)], range(count))
            done += count
            rate, goal = count / seconds, bench.goals.rate(bench.goals.jobs)
            return [
                Reading(label="executions without a step", unit="per s", ours=rate, limit=limit, goal=goal, key="rate")
            ]

        async with working(store, registry(Plain()), CROWD):
            yield repetition
        await store.check(completed=done)


@asynccontextmanager
async def _starts(bench: Bench) -> AsyncIterator[Repetition]:
    count, done = bench.sizes.starts, 0
    async with bench.store("starts") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            limit = await bench.limits.rows_per_second(_LIMIT_ROWS)
            requests = [StartRequest(Plain, number) for number in range(count)]
            began = time.perf_counter()
            handles = await store.client.start_many(requests)
            seconds = time.perf_counter() - began
            same("started executions", len({handle.execution_id for handle in handles}), count)
            done += count
            rate, goal = count / seconds, bench.goals.rate(bench.goals.starts)
            label = "start_many, to 100-row commits"
            return [Reading(label=label, unit="per s", ours=rate, limit=limit, goal=goal, key="rate")]

        yield repetition
        await store.check(completed=0, scheduled=done)


@asynccontextmanager
async def _singles(bench: Bench) -> AsyncIterator[Repetition]:
    count, done, steps = bench.sizes.singles, 0, Steps()
    async with bench.store("singles") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            limit = per_second(await bench.limits.commits())
            seconds = await through(store, [StartRequest(Steps, 1)] * count, [0] * count)
            done += count
            rate, goal = count / seconds, bench.goals.rate(bench.goals.singles)
            return [
                Reading(label="executions of one step", unit="per s", ours=rate, limit=limit, goal=goal, key="rate")
            ]

        async with working(store, registry(steps), CROWD):
            yield repetition
        same("steps that ran", steps.ran, done)
        await store.check(completed=done)


@asynccontextmanager
async def _crowd(bench: Bench) -> AsyncIterator[Repetition]:
    count, each, done, steps = bench.sizes.crowd, bench.sizes.steps, 0, Steps()
    async with bench.store("crowd") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            single = await bench.limits.crowd()
            bulk = await bench.limits.rows_per_second(_LIMIT_ROWS)
            total = sum(range(each))
            seconds = await through(store, [StartRequest(Steps, each)] * count, [total] * count)
            done += count
            rate = count * each / seconds
            goal = Goal("ratio", "least", bench.goals.crowd)
            return [
                Reading(
                    label="steps, to single-row commits", unit="per s", ours=rate, limit=single, goal=goal, key="rate"
                ),
                Reading(label="steps, to 100-row commits", unit="per s", ours=rate, limit=bulk),
            ]

        async with working(store, registry(steps), CROWD):
            yield repetition
        same("steps that ran", steps.ran, done * each)
        await store.check(completed=done)


# --- latency --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _answers(bench: Bench) -> AsyncIterator[Repetition]:
    done, steps = 0, Steps()
    async with bench.store("answers") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            commits = await bench.limits.commits()
            took = [await _answer(store) for _ in range(bench.sizes.calls)]
            done += len(took)
            return _latency("start to result", took, commits, 3.0, 10.0)

        async with working(store, registry(steps)):
            yield repetition
        same("steps that ran", steps.ran, done)
        await store.check(completed=done)


@asynccontextmanager
async def _remote_answers(bench: Bench) -> AsyncIterator[Repetition]:
    done = 0
    async with bench.store("remote") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            commits = await bench.limits.commits()
            took = [await _answer(store) for _ in range(bench.sizes.remote_calls)]
            done += len(took)
            return _latency("start to result, two processes", took, commits, *bench.goals.remote)

        async with process.worker(store.url):
            yield repetition
        await store.check(completed=done)


async def _answer(store: Store) -> float:
    began = time.perf_counter()
    handle = await store.client.start(Steps, 1)
    result = await handle.result(PATIENCE)
    seconds = time.perf_counter() - began
    same("the result", result, 0)
    return seconds


@asynccontextmanager
async def _events(bench: Bench) -> AsyncIterator[Repetition]:
    done = 0
    async with bench.store("events") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            commits = await bench.limits.commits()
            took = [await _event(store, number) for number in range(bench.sizes.calls)]
            done += len(took)
            return _latency("event to result", took, commits, 3.0, None)

        async with working(store, registry(Waiting())):
            yield repetition
        await store.check(completed=done)


async def _event(store: Store, number: int) -> float:
    handle: ExecutionHandle[int] = await store.client.start(Waiting, None)
    result = asyncio.get_running_loop().create_task(handle.result(PATIENCE))
    await until_waiting(store, handle)
    began = time.perf_counter()
    await store.client.offer_event(handle.execution_id, "go", number)
    same("the result", await result, number)
    return time.perf_counter() - began


async def until_waiting(store: Store, handle: ExecutionHandle[Any]) -> None:
    """Until the execution waits for its event, and has become quiet."""
    while True:
        status = await store.client.status(handle.execution_id)
        if status.waiting_on is not None and status.waiting_on.kind == "event":
            return
        if status.finished_at is not None:
            raise Wrong(f"{handle!r} ended without its event: {status.error}")
        await asyncio.sleep(0.002)


def _latency(
    label: str, took: list[float], commits: list[float], middle: float | None, tail: float | None
) -> list[Reading]:
    """Median and 99th percentile in milliseconds, beside those of one raw commit."""
    return [
        Reading(
            label=f"{label}, {name}",
            unit="ms",
            ours=percentile(took, share) * 1_000,
            limit=percentile(commits, share) * 1_000,
            goal=None if most is None else Goal("ours", "most", most),
            key=name,
        )
        for name, share, most in (("p50", 0.5, middle), ("p99", 0.99, tail))
    ]


# --- parallel work --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _fan_out(bench: Bench) -> AsyncIterator[Repetition]:
    """The limit is one commit of as many rows as there are steps."""
    count, done, fan = bench.sizes.fan, 0, Fan()
    async with bench.store("fan") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            limit = count / await bench.limits.rows_per_second(count) * 1_000
            took = [
                await through(store, [StartRequest(Fan, count)], [sum(range(count))]) for _ in range(bench.sizes.fans)
            ]
            done += len(took)
            label = f"fan-out of {count:,} parallel steps"
            ours = percentile(took, 0.5) * 1_000
            return [Reading(label=label, unit="ms", ours=ours, limit=limit, goal=Goal("ours", "most", 60.0), key="p50")]

        async with working(store, registry(fan), CROWD):
            yield repetition
        same("steps that ran", fan.ran, done * count)
        await store.check(completed=done)


@asynccontextmanager
async def _families(bench: Bench) -> AsyncIterator[Repetition]:
    """The limit is the time for each child of a small family."""
    few, many = bench.sizes.children
    done = 0
    async with bench.store("families") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            small, large = [
                await through(store, [StartRequest(Family, count)], [sum(range(count))]) / count * 1_000_000
                for count in (few, many)
            ]
            done += few + many + 2
            label = f"each of {many:,} children, to each of {few:,}"
            return [Reading(label=label, unit="µs", ours=large, limit=small, goal=Goal("ratio", "most", 1.5))]

        async with working(store, registry(Family(), Plain()), CROWD):
            yield repetition
        await store.check(completed=done)


# --- one long execution ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def _sequence(bench: Bench) -> AsyncIterator[Repetition]:
    count, done, handler = bench.sizes.sequence, 0, Replayed()
    async with bench.store("sequence") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            limit = per_second(await bench.limits.commits())
            handler.through.clear()
            handle: ExecutionHandle[int]
            async with working(store, registry(handler)):
                handle = await store.client.start(Replayed, count)
                await handler.through.wait()  # asking the store meanwhile would be measured, too
                await until_waiting(store, handle)
            began, passed = handler.passes[-1]
            rate = count / (passed - began)
            # Nobody works on it now; its event makes it due. A fresh worker has to replay it all.
            await store.client.offer_event(handle.execution_id, "go", 1)
            async with working(store, registry(handler)):
                same("the result", await handle.result(PATIENCE), sum(range(count)) + 1)
            done += 1
            same("passes", len(handler.passes), 2 * done)
            if store.scheduler.claimed is None:
                raise Wrong("no claim got the execution")
            asked, answered = store.scheduler.claimed
            began, passed = handler.passes[-1]
            milliseconds = [1_000 * seconds for seconds in (passed - asked, answered - asked, passed - began)]
            labels = (
                f"replay of {count:,} steps, from the claim",
                "… of it claim and load",
                "… of it the handler's pass",
            )
            goals = (Goal("ours", "most", 30.0), None, None)
            keys = ("replay", None, None)
            return [
                Reading(
                    label=f"{count:,} steps in sequence",
                    unit="per s",
                    ours=rate,
                    limit=limit,
                    goal=Goal("ratio", "least", bench.goals.sequence),
                    key="rate",
                ),
                *(
                    Reading(label=label, unit="ms", ours=ours, goal=goal, key=key)
                    for label, ours, goal, key in zip(labels, milliseconds, goals, keys, strict=True)
                ),
            ]

        yield repetition
        same("steps that ran", handler.ran, done * count)
        await store.check(completed=done)


# --- much that is not due -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _backlog(bench: Bench) -> AsyncIterator[Repetition]:
    """The limit is the same claim where nothing else is stored."""
    sizes = bench.sizes
    async with bench.store("empty") as empty, bench.store("full") as full:
        await backlog.fill(full, finished=sizes.finished, sleeping=sizes.sleeping)
        async with backlog.claimer(empty) as in_empty, backlog.claimer(full) as in_full:

            async def repetition() -> list[Reading]:
                # By turns, so that whatever disturbs the machine disturbs both.
                pairs = [(await in_empty.one(), await in_full.one()) for _ in range(sizes.claims)]
                nothing = [(await in_empty.none(), await in_full.none()) for _ in range(sizes.claims)]
                return [
                    Reading(
                        label=f"{label}, {name}",
                        unit="ms",
                        ours=percentile([full for _, full in took], share) * 1_000,
                        limit=percentile([empty for empty, _ in took], share) * 1_000,
                        goal=Goal("ratio", "most", 2.0) if share > 0.5 else None,
                    )
                    for label, took in (("claim of one run", pairs), ("claim, nothing due", nothing))
                    for name, share in (("p50", 0.5), ("p99", 0.99))
                ]

            yield repetition
        await empty.check(completed=in_empty.finished)
        await full.check(completed=in_full.finished + sizes.finished, waiting=sizes.sleeping)


@asynccontextmanager
async def _crowded(bench: Bench) -> AsyncIterator[Repetition]:
    """List and stats at 1,000,000 finished and 200,000 sleeping. The limit is the same question where nothing is stored."""
    sizes = bench.sizes
    async with bench.store("empty-lists") as empty, bench.store("full-lists") as full:
        await crowded.fill(full, finished=sizes.finished, sleeping=sizes.sleeping)
        await empty.scheduler.reap(10)
        await full.scheduler.reap(10)
        deep = sizes.finished // 2

        async def repetition() -> list[Reading]:
            readings: list[Reading] = []
            in_empty = crowded.questions(empty, deep=deep)
            for label, question in crowded.questions(full, deep=deep).items():
                limit, _ = await crowded.seconds(in_empty[label], sizes.questions)
                ours, found = await crowded.seconds(question, sizes.questions)
                readings.append(
                    Reading(
                        label=f"{label}: {found}" if found else label, unit="ms", ours=ours * 1e3, limit=limit * 1e3
                    )
                )
            return readings

        yield repetition


# --- a worker that is killed ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _keys(bench: Bench) -> AsyncIterator[Repetition]:
    count, done = bench.sizes.keys, 0
    async with bench.store("keys") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            with_limit, without = await keys.rates(store, count)
            done += 2 * count
            goal = Goal("ratio", "least", 0.5)
            label = f"one at once of each of {count:,} keys, to no limit"
            return [Reading(label=label, unit="per s", ours=with_limit, limit=without, goal=goal)]

        yield repetition
        await store.check(completed=done)


@asynccontextmanager
async def _takeover(bench: Bench) -> AsyncIterator[Repetition]:
    lease = positive_micros(WorkerConfig().lease, what="lease") / SECOND
    async with bench.store("takeover") as store:

        async def repetition() -> list[Reading]:
            took = await takeover.takeovers(store, store.url, bench.sizes.takeovers)
            return [
                Reading(
                    label=f"kill -9 to the next step, {name} of {len(took)}",
                    unit="s",
                    ours=percentile(took, share),
                    limit=lease,
                    goal=Goal("ours", "most", lease + 1.0) if share == 1.0 else None,
                )
                for name, share in (("p50", 0.5), ("worst", 1.0))
            ]

        yield repetition
        await store.check(completed=bench.sizes.takeovers)


WORKLOADS: Final = (
    Workload("limits", sqlite_raw),
    Workload("W0", _jobs),
    Workload("W0-start", _starts),
    Workload("W1", _singles),
    Workload("W2", _crowd),
    Workload("W3", _answers),
    Workload("W3-two", _remote_answers),
    Workload("W4", _fan_out),
    Workload("W4-children", _families),
    Workload("W5", _events),
    Workload("W6", _sequence),
    Workload("W7", rest, once=True),
    Workload("W9", timers, once=True),
    Workload("W10", sqlite_volume),
    Workload("W10-memory", memory, once=True),
    Workload("W11", crew),
    Workload("W12", _takeover, once=True),
    Workload("lists", _crowded, once=True),
    Workload("keys", _keys),
    Workload("limits-postgres", postgres_raw, backend="postgres"),
    Workload("W0-postgres", _jobs, backend="postgres"),
    Workload("W0-start-postgres", _starts, backend="postgres"),
    Workload("W1-postgres", _singles, backend="postgres"),
    Workload("W2-postgres", _crowd, backend="postgres"),
    Workload("W3-postgres", _answers, backend="postgres"),
    Workload("W3-two-postgres", _remote_answers, backend="postgres"),
    Workload("W4-postgres", _fan_out, backend="postgres"),
    Workload("W4-children-postgres", _families, backend="postgres"),
    Workload("W5-postgres", _events, backend="postgres"),
    Workload("W6-postgres", _sequence, backend="postgres"),
    Workload("W7-postgres", rest, once=True, backend="postgres"),
    Workload("W8", _backlog, backend="postgres"),
    Workload("W9-postgres", timers, once=True, backend="postgres"),
    Workload("W10-postgres", postgres_volume, backend="postgres"),
    Workload("W10-memory-postgres", memory, once=True, backend="postgres"),
    Workload("W11-postgres", crew, backend="postgres"),
    Workload("W12-postgres", _takeover, once=True, backend="postgres"),
    Workload("lists-postgres", _crowded, once=True, backend="postgres"),
    Workload("keys-postgres", _keys, backend="postgres"),
)
