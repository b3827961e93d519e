"""Sequential and parallel steps together: a set-up, a fan-out, and a summary of what came of it; written as plain functions.

Run it with ``python -m examples.mixed_phases``.
"""

import asyncio

from msgspec import Struct

import zart_core
from examples._database import database
from zart_core import DurableScheduler, TaskRegistry, Worker, zart_durable, zart_step


class Payout(Struct, frozen=True):
    month: str


class Config(Struct, frozen=True):
    currency: str
    batches: list[list[int]]


@zart_step("load-config")
async def load_config(month: str) -> Config:
    return Config("EUR", [[10, 20], [5], [7, 8, 9]])


@zart_step("process-payments", retry="exponential(3, 10ms)")
async def process_payments(amounts: list[int], currency: str) -> int:
    return sum(amounts)


@zart_step("summarize-{month}")
async def summarize(month: str, totals: list[int], currency: str) -> str:
    return f"{month}: {' + '.join(map(str, totals))} = {sum(totals)} {currency}"


@zart_durable("payout")
async def payout(data: Payout) -> str:
    # Phase 1: in sequence.
    config = await load_config(data.month)
    # Phase 2: in parallel. A zart_step brings its retries along; here it gets a name for each call.
    handles = [
        zart_core.schedule(f"payments-{number}", process_payments, batch, config.currency)
        for number, batch in enumerate(config.batches)
    ]
    totals = await zart_core.wait_all(handles)
    # Phase 3: in sequence again, with what the second phase has found.
    return await summarize(data.month, totals, config.currency)


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(payout)

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(payout, Payout("may"))
        print(await handle.result(timeout="60s"))
        names = sorted(step.name for step in (await durable.history(handle.execution_id)).steps)
        print(", ".join(names))


if __name__ == "__main__":
    asyncio.run(main())
