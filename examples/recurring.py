"""Recurring work: schedules that a deployment brings along, and what becomes of them over its life.

The workers of a deployment register its schedules when they start; however many there are, there is one schedule, and each of its
ticks starts one execution. Here a first version is deployed, then a second one with another text, then an operator stops the
schedule, which no deployment begins again.

Run it with ``python -m examples.recurring``.
"""

import asyncio
from zoneinfo import ZoneInfo

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, Recurrence, TaskContext, TaskHandler, TaskRegistry, Worker


class Wanted(Struct, frozen=True):
    heading: str


class Report(TaskHandler[Wanted, str]):
    name = "report"

    async def run(self, ctx: TaskContext, data: Wanted) -> str:
        orders = await ctx.step("count-orders", self.count_orders)
        return f"{data.heading}: {orders} orders"

    async def count_orders(self) -> int:
        return 12


def deployment(heading: str) -> TaskRegistry:
    """The code of one version: its tasks, and its schedules."""
    registry = TaskRegistry()
    registry.register(Report())
    # At night, in real life: the second schedule shows how that is said.
    registry.recurring(
        "report",
        Report,
        Wanted(heading),
        every="100ms",
        id_template="report-{occurrence}",
        overlap="skip",
        catch_up="one",
    )
    registry.recurring("weekday-report", Report, Wanted(heading), cron="30 6 * * MON-FRI", timezone="Europe/Berlin")
    return registry


async def main() -> None:
    scheduler = database()
    async with scheduler:
        durable = DurableScheduler(scheduler)

        async with Worker(scheduler, deployment("Today")), Worker(scheduler, deployment("Today")):
            for number in range(3):
                print(f"report-{number}: {await output(durable, number)}")

        # Nobody works: the ticks of this time are missed, and one execution will make up for all of them.
        await asyncio.sleep(0.5)
        before = await schedule(durable, "report")

        async with Worker(scheduler, deployment("Until now")):
            print(f"The second version goes on with the next number: {await output(durable, before.counter)}")
            await durable.stop_recurring("report")

        async with Worker(scheduler, deployment("Until now")):
            stopped = await schedule(durable, "report")
            print(f"It is stopped, and a deployment does not begin it again: {stopped.stopped}")

            again = await durable.recurring("report", Report, Wanted("Again"), every="100ms", resume=True)
            print(f"Begun on purpose: {await output(durable, again.counter)}")
            await durable.stop_recurring("report")

        ran = await schedule(durable, "report")
        numbers = {execution.execution_id for execution in (await durable.list(task="report", limit=1_000)).items}
        print(f"No number is missing: {numbers == {f'report-{number}' for number in range(ran.counter)}}")

        weekdays = await schedule(durable, "weekday-report")
        local = [tick.astimezone(ZoneInfo(weekdays.timezone)) for tick in weekdays.next_times]
        print(f"weekday-report: {weekdays.cron} in {weekdays.timezone}, at {local[0]:%H:%M}; {weekdays.counter} so far")
        await durable.stop_recurring("weekday-report")


async def schedule(durable: DurableScheduler, name: str) -> Recurrence:
    return next(found for found in await durable.recurrings() if found.name == name)


async def output(durable: DurableScheduler, number: int) -> str:
    """What the report of this number has returned, once its tick has come and it has ended."""
    while (await schedule(durable, "report")).counter <= number:
        await asyncio.sleep(0.02)
    return str((await durable.wait(f"report-{number}", timeout="60s")).output)


if __name__ == "__main__":
    asyncio.run(main())
