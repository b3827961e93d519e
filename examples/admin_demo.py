"""An operator's day: work is held back and let go, what failed is mended, done again or tried beside, and old things go.

Run it with ``python -m examples.admin_demo``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import (
    DurableScheduler,
    Execution,
    ExecutionFailed,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
)


class Order(Struct, frozen=True):
    item: str
    card: str = "good"


class Shop:
    """Stands in for the systems that an order touches."""

    blocked_cards = frozenset({"blocked"})

    async def reserve(self, order: Order) -> str:
        print(f"  reserve {order.item}")
        return order.item

    async def charge(self, order: Order) -> str:
        print(f"  charge for {order.item}")
        if order.card in self.blocked_cards:
            raise PermissionError(f"card {order.card!r} is refused")
        return f"{order.item} paid"

    async def send_mail(self, receipt: str) -> str:
        print(f"  mail: {receipt}")
        return f"{receipt}, mailed"


class Checkout(TaskHandler[Order, str]):
    name = "checkout"

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def run(self, ctx: TaskContext, data: Order) -> str:
        await ctx.step("reserve", self.shop.reserve, data)
        receipt = await ctx.step("charge", self.shop.charge, data)
        return await ctx.step("send-mail", self.shop.send_mail, receipt)


async def main() -> None:
    scheduler = database()
    shop = Shop()
    registry = TaskRegistry()
    registry.register(Checkout(shop))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)

        print("The mail server is down: no mail is sent, everything else goes on")
        rule = await durable.pause(step="send-*", reason="the mail server is down")
        tea = await durable.start(Checkout, Order("tea"))
        held = await paused(durable, tea.execution_id)
        why = held.paused_by.reason if held.paused_by else "?"
        print(f"=> {held.status}: {why}")
        await durable.resume(rule)
        print(f"=> {await tea.result(timeout='60s')}")

        print("A card is refused, which is settled with the bank")
        cups = await durable.start(Checkout, Order("cups", card="blocked"))
        try:
            await cups.result(timeout="60s")
        except ExecutionFailed as failed:
            print(f"=> step {failed.failure.step!r} failed: {failed.failure.error.message}")
        shop.blocked_cards = frozenset()
        await durable.retry_step(cups.execution_id, "charge")  # what was reserved stays reserved
        print(f"=> {await cups.result(timeout='60s')}")

        print("The mail got lost: it is sent once more, and nothing else is done again")
        again = await durable.rerun(cups.execution_id, ["send-mail"])
        print(f"=> {await again.result(timeout='60s')} (kept: {', '.join(again.kept)})")

        print("Somebody wants the same order, but for the charge: a fork reuses what was done before it")
        fork = await durable.fork(cups.execution_id, "charge")
        print(f"=> {await fork.result(timeout='60s')}")

        print("The order was for the wrong thing: from the beginning, with another input")
        await durable.restart(cups.execution_id, Order("plates"))
        print(f"=> {await cups.result(timeout='60s')}")

        print("What has happened to it:")
        for run in await durable.runs(cups.execution_id):
            history = await durable.history(cups.execution_id, run.run)
            steps = ", ".join(f"{step.name} x{step.attempts + len(step.failures)}" for step in history.steps)
            print(f"  run {run.run} ({run.trigger}) {run.status}: {steps}")

        print(f"Purged: {await durable.purge(older_than=0, statuses='completed')} executions")


async def paused(durable: DurableScheduler, execution_id: str) -> Execution:
    """The execution, once it is held."""
    while (status := await durable.status(execution_id)).status != "paused":
        await asyncio.sleep(0.01)
    return status


if __name__ == "__main__":
    asyncio.run(main())
